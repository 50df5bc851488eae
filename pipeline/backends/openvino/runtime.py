"""OpenVINO's runtime on the CPU: open, count, run and profile a file."""

import statistics
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import regular_file
from pipeline.artifacts.manifest import Unavailable, versions
from pipeline.artifacts.samples import fitting
from pipeline.backends.openvino.package import openvino
from pipeline.backends.runtime import Runtime, Session
from pipeline.backends.signatures import Signature, Tensor
from pipeline.errors import InputError, StageError, first_line, reading

if TYPE_CHECKING:
    import numpy as np

_CONVOLUTIONS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData")
_LAYERS = (*_CONVOLUTIONS, "MatMul")
_KINDS = {"Convolution": "convolution", "Deconvolution": "convolution", "FullyConnected": "linear", "MatMul": "linear"}
_WARMUP_RUNS = 10


def unavailable() -> Unavailable | None:
    """None where OpenVINO is installed."""
    if versions("openvino")["openvino"] is not None:
        return None
    return Unavailable("OpenVINO is not installed.", 'Install it: pip install "repnets[openvino]".')


def signature(file: Path) -> Signature:
    """What a file takes and gives. InputError where it cannot be read."""
    model = _read(file)
    with reading(file):
        (taken, *more), given = ([_tensor(one) for one in side] for side in (model.inputs, model.outputs))
        return Signature(taken, tuple(given), taken.shape, further=tuple(more))


def _tensor(port: Any) -> Tensor:
    shape = tuple(size.get_length() if size.is_static else None for size in port.get_partial_shape())
    return Tensor(shape, min(port.get_names(), default=None), port.get_element_type().to_dtype().name)


def census(file: Path) -> dict[str, int]:
    """Operations of a file by type, without constants; and ``convolution``, ``batch_norm``, ``join``, ``int8``,
    ``total``.

    ``join`` counts additions of two values that depend on the input. ``int8`` counts the convolutions and products
    whose operands are int8 and whose result, an activation after it or not, is rounded to int8.

    Raises:
        InputError: the file cannot be read.
    """
    model = _read(file)
    with reading(file):
        return _census(model)


def open_session(file: Path, threads: int) -> Session:
    """Load a file onto the CPU.

    Args:
        file: an .xml with its .bin beside it.
        threads: that one inference is spread over.

    Returns:
        A session for the file's own input shapes. What is not int8 is computed in float32, also where the CPU has
        bfloat16 or float16.

    Raises:
        InputError: the file cannot be read.
        StageError: OpenVINO cannot run it.
    """
    request, shapes = _request(file, threads)

    def run(images: "np.ndarray") -> "list[np.ndarray]":
        request.infer(fitting(images, shapes, file), share_inputs=True)
        return [one.data.copy() for one in request.output_tensors]

    return run


def profile(file: Path, threads: int, image: "np.ndarray", runs: int) -> list[dict[str, Any]]:
    """Where the time of one inference goes, by OpenVINO's own counters: `Runtime.profile`. Its unit is 1 us.

    Raises:
        InputError, StageError: as `open_session`.
    """
    request, shapes = _request(file, threads, PERF_COUNT=True)
    inputs = fitting(image, shapes, file)
    times: dict[str, list[float]] = {}
    for number in range(_WARMUP_RUNS + runs):
        request.infer(inputs, share_inputs=True)
        for one in request.profiling_info if number >= _WARMUP_RUNS else ():
            if one.status == one.Status.EXECUTED:
                times.setdefault(f"{one.node_name}\n{one.node_type}", []).append(one.real_time.total_seconds() * 1000)
    rows = [(*key.split("\n"), statistics.median(taken)) for key, taken in times.items()]
    return [{"name": name, "kind": _kind(name, made), "ms": round(ms, 6)} for name, made, ms in rows]


def _read(file: Path) -> Any:
    try:
        for part in (file, file.with_suffix(".bin")):
            regular_file.require(part)
        return openvino().Core().read_model(file)
    except Exception as error:  # its readers raise many kinds
        why = "does not exist" if not file.is_file() else f"cannot be read by OpenVINO ({first_line(error)})"
        raise InputError(f"{file} {why}. Copy it and its .bin again, or run the export again.") from None


def _request(file: Path, threads: int, **more: Any) -> tuple[Any, list[tuple[int, ...]]]:
    model = _read(file)
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # its default on a CPU with bfloat16 is that
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        **more,
    }
    try:
        compiled = openvino().Core().compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise StageError(f"OpenVINO cannot run {file}: {first_line(error)}. Export it again.") from error
    return compiled.create_infer_request(), [tuple(one.get_shape()) for one in model.inputs]


def _census(model: Any) -> dict[str, int]:
    nodes = [one for one in model.get_ordered_ops() if one.get_type_name() not in ("Constant", "Result")]
    operations = Counter(one.get_type_name() for one in nodes if one.get_type_name() != "Parameter")
    return {
        "convolution": sum(operations[name] for name in _CONVOLUTIONS),
        "batch_norm": operations["BatchNormInference"],
        "join": _joins(nodes),
        "int8": sum(one.get_type_name() in _LAYERS and _is_int8(one) for one in nodes),
        "total": operations.total(),
        **dict(sorted(operations.items())),
    }


def _kind(name: str, made: str) -> str:
    return "depthwise" if name.startswith("GroupConvolution") else _KINDS.get(made, "other")


def _joins(nodes: list[Any]) -> int:
    computed: set[str] = set()
    joins = 0
    for node in nodes:
        sources = [value.get_source_output().get_node().get_friendly_name() for value in node.inputs()]
        depending = computed.intersection(sources)
        joins += node.get_type_name() == "Add" and len(depending) > 1
        if depending or node.get_type_name() == "Parameter":
            computed.add(node.get_friendly_name())
    return joins


def _is_int8(layer: Any) -> bool:
    image, weight = (value.get_source_output().get_node() for value in layer.inputs()[:2])
    while image.get_type_name() == "Reshape":
        image = image.input_value(0).get_node()
    stored = weight
    while stored.get_type_name() in ("Multiply", "Convert", "Reshape"):
        stored = stored.input_value(0).get_node()
    is_stored = stored.get_type_name() == "Constant" and stored.get_output_element_type(0).get_type_name() == "i8"
    return image.get_type_name() == "FakeQuantize" and is_stored and _is_rounded(layer, 2)


def _is_rounded(node: Any, steps: int) -> bool:
    """Whether a result is made int8: at once, or after its bias, an activation and a concatenation, which OpenVINO
    rounds once where its parts have its scale."""
    users = [one.get_node() for one in node.output(0).get_target_inputs()]
    return any(
        one.get_type_name() == "FakeQuantize"
        or (one.get_type_name() == "Concat" and _is_rounded(one, 0))
        or (steps and _is_rounded(one, steps - 1))
        for one in users
    )


RUNTIME = Runtime(open_session=open_session, open_exact_session=open_session, profile=profile)
