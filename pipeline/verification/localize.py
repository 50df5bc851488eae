"""Where a file departs from its program, for runtimes that show nothing of what is inside.

A file that the exporter would write again, byte for byte, is sound, and the exporter or the runtime is at fault: then
the program is cut in two, the first half exported and run, and so on, until one layer is left. A file that differs
from what the exporter writes was damaged, or made of other weights: then the first weight that differs names the layer.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import backends, temporary
from pipeline.artifacts.manifest import ExportSpec
from pipeline.backends.worker import client
from pipeline.models import programs
from pipeline.verification.compare import Departure, first_departure

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

_LAYOUTS = ((0, 1, 2, 3), (0, 2, 3, 1), (1, 2, 3, 0), (2, 3, 1, 0))  # in which exporters store a kernel


def locate(
    backend: str, file: Path, program: "ExportedProgram", spec: ExportSpec, image: "np.ndarray", tolerance: float
) -> str:
    """Say in words where a file departs from the program it should come from.

    Args:
        backend: module under pipeline.backends.
        file: the one file that it writes.
        program: float32, of static shape ``spec.input_shape``.
        spec: what the exporter is asked for.
        image: float32 of the input shape, on which the file is wrong.
        tolerance: of a layer's output, of its largest value.
    """
    module = programs.graph_module(program)
    with temporary.folder() as folder:
        fresh = Path(folder, "again" + file.suffix)
        backends.load(backend).export(program, [fresh], spec)
        found, must = file.read_bytes(), fresh.read_bytes()
        if found != must:
            return _other_content(found, must, module, spec.precision)
        departed = _bisect(backend, module, spec, image, tolerance, Path(folder))
    if departed is None:
        return "cut short after any layer, the program exports and runs as it should"
    return str(departed)


def _bisect(
    backend: str, module: "GraphModule", spec: ExportSpec, image: "np.ndarray", tolerance: float, folder: Path
) -> Departure | None:
    """The first layer after which the exported program is wrong; that of the last one is known to be."""
    want, spec = programs.outputs_of(module, image), replace(spec, output_names=("layer",))
    layers = [node for node in programs.layers(module) if node.name in want]
    # between a dequantize and the next quantize a runtime computes in int8, so that a cut there is another file
    layers = [node for node in layers if "dequantize_per_tensor" in str(node.target)] or layers
    tried: dict[int, Departure | None] = {}

    def departs(index: int) -> bool:
        if index not in tried:
            name = layers[index].name
            file = folder / backends.load(backend).file_name(str(index))
            cut = programs.static(programs.cut_after(module, layers[index]), *spec.inputs.values())
            backends.load(backend).export(cut, [file], spec)
            got = client.predict(backend, file, image, batch=spec.input_shape[0])
            tried[index] = first_departure({name: got}, {name: want[name]}, tolerance)
        return tried[index] is not None

    low, high = 0, len(layers) - 1
    if high < 0 or not departs(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if departs(middle) else (middle + 1, high)
    found = tried[high] if departs(high) else None
    if found is None:
        return None
    before = programs.title(module, layers[high - 1].name) if high else None
    return Departure(
        programs.title(module, found.layer),
        found.index,
        found.got,
        found.want,
        found.relative_error,
        before,
        len(tried),
    )


def _other_content(found: bytes, must: bytes, module: "GraphModule", precision: str) -> str:
    """In words: how a file differs from what the exporter writes."""
    for name, tensor in programs.constants(module):
        stored = tensor.detach().half() if precision == "fp16" else tensor.detach()
        for start, content in _places(stored, must):
            if found[start : start + len(content)] != content:
                at = next(i for i in range(len(content)) if found[start + i : start + i + 1] != content[i : i + 1])
                return (
                    f"its weights are not those of its program: the first that differs is in "
                    f"{programs.reader(module, name)}, at byte {start + at} of the file"
                )
    return (
        f"it has every weight of its program, but is not the file that the exporter writes of it now ({len(found)} "
        f"bytes and {len(must)}); another version of the exporter may have made it"
    )


def _places(tensor: "torch.Tensor", content: bytes) -> "list[tuple[int, bytes]]":
    """Where a file holds a weight, in whatever order of its dimensions, and the weight's bytes there."""
    orders = [order for order in _LAYOUTS if tensor.dim() == 4] or [tuple(range(tensor.dim()))]
    for order in orders:
        needle = tensor.permute(order).contiguous().numpy().tobytes()
        if needle and (start := content.find(needle)) >= 0:
            return [(start, needle)]
    return []
