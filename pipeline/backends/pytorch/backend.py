"""PyTorch itself: a torch.export program on disk (.pt2), run eagerly, one operation of its graph after the other.

No target: the others are compared with it, and `repnets bench` times it beside them.
"""

import json
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts.manifest import Unavailable
from pipeline.backends.base import Backend
from pipeline.backends.runtime import Runtime
from pipeline.backends.signatures import Signature
from pipeline.errors import InputError, StageError, first_line
from pipeline.quiet import quiet

if TYPE_CHECKING:
    import numpy as np
    import torch

_LINEAGE = "lineage.json"


def read(file: Path) -> "tuple[torch.export.ExportedProgram, dict[str, Any]]":
    """A program, and its lineage where this pipeline wrote it: ``arch``, ``checkpoint`` and more, or empty.

    Raises:
        InputError: the file is missing, damaged, of another kind, or of another version of torch.
    """
    import torch

    if not file.is_file():
        raise InputError(f"{file} does not exist. Build it first: snakemake {file}")
    if not zipfile.is_zipfile(file):
        raise InputError(f"{file} is no torch.export program, or was cut short. Build it again.")
    extra = {_LINEAGE: ""}
    with quiet():
        import torch.ao.quantization.fx._decomposed  # the operators of quantized programs

        try:
            program = torch.export.load(file, extra_files=extra)
        except Exception as error:
            raise InputError(
                f"{file} is no torch.export program that torch {torch.__version__} can read ({first_line(error)}). "
                "Build it again with the installed version."
            ) from error
    return program, json.loads(extra[_LINEAGE] or "{}")


def census(file: Path) -> dict[str, int]:
    """Operations of a program by type; ``convolution``, ``batch_norm``, ``join``, ``int8``, ``total``.

    ``join`` counts additions of two values that depend on the input; ``int8`` the convolutions and linear layers that
    read int8 and weights of int8, and whose result, an activation after it or not, is made int8 again.

    Raises:
        InputError: as for `read`.
    """
    return count(read(file)[0])


def count(program: "torch.export.ExportedProgram") -> dict[str, int]:
    """Operations of a program by type; see `census`."""
    import torch

    operations = Counter(
        str(node.target).removesuffix(".default")
        for part in program.graph_module.modules()
        if isinstance(part, torch.fx.GraphModule)
        for node in part.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload) and "assert" not in str(node.target)
    )
    return {
        "convolution": sum(number for name, number in operations.items() if name.startswith("aten.conv")),
        "batch_norm": sum(number for name, number in operations.items() if "batch_norm" in name),
        "join": _joins(program.graph),
        "int8": sum(map(_is_int8, program.graph.nodes)),
        "total": operations.total(),
        **dict(sorted(operations.items())),
    }


def unavailable() -> Unavailable | None:
    """None: this project does not work without PyTorch."""
    return None


def open_session(file: Path, threads: int) -> "Callable[[np.ndarray], np.ndarray]":
    """Load a program for timing or comparing.

    Args:
        file: a .pt2 with one image batch as its input and one tensor as its output.
        threads: of torch; they belong to the process.

    Returns:
        float32 (N, 3, H, W), of the file's own shape where that is fixed -> float32 logits (N, classes).

    Raises:
        InputError: as for `read`.
    """
    return _session(file, threads, exact=False)


def open_exact_session(file: Path, threads: int) -> "Callable[[np.ndarray], np.ndarray]":
    """The same with every float16 in the program made float32, its weights as they are stored. See `open_session`."""
    return _session(file, threads, exact=True)


def outputs_by_layer(file: Path, image: "np.ndarray", *, exact: bool = False) -> "dict[str, np.ndarray]":
    """What each operation of a program gives, by the name of its node, in the order of execution.

    Args:
        file: a .pt2, as for `open_session`.
        image: float32 (N, 3, H, W).
        exact: as `open_exact_session` computes it.

    Returns:
        float32 arrays; operations that give no tensor of floating point are left out.

    Raises:
        InputError: as for `read`.
    """
    program, _ = read(file)
    _require_shape(file, program, image.shape)
    return outputs_of(_module(program, exact), image)


def outputs_of(module: "torch.fx.GraphModule", image: "np.ndarray") -> "dict[str, np.ndarray]":
    """What each operation of a network gives for float32 (N, 3, H, W); see `outputs_by_layer`."""
    import torch

    interpreter = torch.fx.Interpreter(module, garbage_collect_values=False)
    interpreter.args_iter = iter([torch.from_numpy(image)])
    outputs = {}
    with torch.inference_mode():
        for node in module.graph.nodes:
            value = interpreter.env[node] = interpreter.run_node(node)
            if node.op == "call_function" and isinstance(value, torch.Tensor) and value.is_floating_point():
                outputs[node.name] = value.float().numpy().copy()  # the next operation may work in place
    return outputs


def input_shape(program: "torch.export.ExportedProgram") -> tuple[int | None, ...]:
    """Shape of a program's one input, None where the program takes any size."""
    return _shape(program, program.graph_signature.user_inputs[0])


def output_shape(program: "torch.export.ExportedProgram") -> tuple[int | None, ...]:
    """Shape of a program's one output, None where the program gives any size."""
    return _shape(program, program.graph_signature.user_outputs[0])


def _joins(graph: "torch.fx.Graph") -> int:
    computed, joins = set(graph.find_nodes(op="placeholder")[-1:]), 0  # the image; before it come the weights
    for node in graph.nodes:
        depending = computed.intersection(node.all_input_nodes)
        joins += str(node.target).startswith(("aten.add.", "aten.add_.")) and len(depending) > 1
        if depending:
            computed.add(node)
    return joins


def _is_int8(node: "torch.fx.Node") -> bool:
    if not str(node.target).startswith(("aten.conv", "aten.linear")):
        return False
    read = [str(one.target) for one in node.args[:2]]
    after = [*node.users, *(user for one in node.users for user in one.users)]
    return all("dequantize_per" in one for one in read) and any(".quantize_per" in str(one.target) for one in after)


def _session(file: Path, threads: int, exact: bool) -> "Callable[[np.ndarray], np.ndarray]":
    import torch

    torch.set_num_threads(threads)
    program, _ = read(file)
    module = _module(program, exact)

    def run(images: "np.ndarray") -> "np.ndarray":
        _require_shape(file, program, images.shape)
        with torch.inference_mode():
            output = module(torch.from_numpy(images))
        if not isinstance(output, torch.Tensor):
            raise StageError(f"{file} gives {type(output).__name__} and not one tensor of logits. Export one output.")
        return output.float().numpy()

    return run


def _module(program: "torch.export.ExportedProgram", exact: bool) -> "torch.fx.GraphModule":
    module = program.module(check_guards=False)
    if exact:
        module = module.float()
        for node in module.graph.nodes:
            node.args, node.kwargs = _widened(node.args), _widened(node.kwargs)
        module.recompile()
    return module


def _widened(value: Any) -> Any:
    """Arguments of a call with float32 in the place of float16."""
    import torch

    return torch.utils._pytree.tree_map(lambda one: torch.float32 if one is torch.float16 else one, value)


def _require_shape(file: Path, program: "torch.export.ExportedProgram", shape: tuple[int, ...]) -> None:
    wanted = input_shape(program)
    if len(shape) != len(wanted) or any(own not in (size, None) for size, own in zip(shape, wanted, strict=True)):
        raise InputError(f"{file} takes an input of shape {wanted}, but got {tuple(shape)}.")


def _shape(program: "torch.export.ExportedProgram", name: str) -> tuple[int | None, ...]:
    node = next(node for node in program.graph.nodes if node.name == name)
    return tuple(size if isinstance(size, int) else None for size in node.meta["val"].shape)


def signature(file: Path) -> Signature:
    """What a program takes and gives. InputError as for `read`."""
    program, _ = read(file)
    shape = input_shape(program)
    example = program.example_inputs[0][0].shape if program.example_inputs else shape
    return Signature(shape, output_shape(program), tuple(example))


RUNTIME = Runtime(open_session=open_session, open_exact_session=open_exact_session, outputs_by_layer=outputs_by_layer)
BACKEND = Backend(
    name="pytorch",
    title="PyTorch",
    runtime=RUNTIME,
    checked_by="PyTorch",
    suffixes=(".pt2",),
    packages=("torch",),
    run_by=(),
    signature=signature,
    census=census,
    unavailable=unavailable,
)
