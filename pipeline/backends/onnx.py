"""ONNX: the file that TensorRT builds from, and ONNX Runtime, which runs it on any CPU as a reference."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.backends.half import half
from pipeline.backends.noise import quiet
from pipeline.errors import InputError, StageError
from pipeline.manifest import ExportSpec, Unavailable, versions

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import torch

FILES: tuple[str, ...] = ("{form}.onnx",)
EXTRAS: tuple[str, ...] = ()
PACKAGES: tuple[str, ...] = ("torch", "onnx", "onnxscript", "onnx-ir")
CHECKED_BY = "ONNX Runtime"

OPSET = 18
"""The exporter's own: a later one would be converted to. TensorRT 10.3 (JetPack 6) reads up to 20."""


def export(program: "torch.export.ExportedProgram", files: Sequence[Path], spec: ExportSpec) -> dict[str, Any]:
    """Write a program as one self-contained ONNX file, the same bytes for the same program.

    Args:
        program: float32, of static shape ``spec.input_shape``.
        files: where the one .onnx goes; its weights are inside.
        spec: ``fp16`` gives float16 tensors between a cast of the float32 input and one of the output,
            so that the file itself carries the precision.

    Returns:
        ``opset``.

    Raises:
        StageError: an operation has no ONNX counterpart, or the file is not valid.
    """
    with quiet():
        import torch

        try:
            exported = torch.onnx.export(
                half(program) if spec.precision == "fp16" else program,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=[spec.input_name],
                output_names=[spec.output_name],
                external_data=False,
            )
            model = exported.model_proto
        except torch.onnx.OnnxExporterError as error:
            raise StageError(
                f"the network cannot be written as ONNX: {_cause(error)} Replace the operation in the "
                f"network, or leave this target out."
            ) from error
    _strip(model)
    files[0].write_bytes(model.SerializeToString(deterministic=True))
    check(files[0])
    return {"opset": OPSET}


def check(file: Path) -> "onnx.ModelProto":
    """Read an ONNX file and hold it against the specification.

    Raises:
        InputError: it is missing, empty, cut short, of another kind, or not valid.
    """
    import onnx
    from google.protobuf.message import DecodeError

    again = "Copy it again or run the export again."
    try:
        content = file.read_bytes()
        model = onnx.load_model_from_string(content)
        onnx.checker.check_model(model)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}. Run the export again.") from None
    except (DecodeError, onnx.checker.ValidationError) as error:
        what = "is empty" if not content else f"does not hold a valid ONNX model ({' '.join(str(error).split())[:200]})"
        raise InputError(f"{file} {what}. {again}") from None
    if not model.graph.node or not model.graph.output:
        raise InputError(f"{file} is an ONNX model without a network. {again}")
    return model


def census(file: Path) -> dict[str, int]:
    """Operations of an ONNX file by type, without constants; ``convolution``, ``batch_norm``, ``join``, ``total``.

    torch's exporter folds a batch norm that follows a convolution; any other stays. ``join`` counts additions of
    two values that depend on the input: a branch that was not folded ends in one.

    Raises:
        InputError: the file is not a valid ONNX model.
    """
    graph = check(file).graph
    operations = Counter(node.op_type for node in graph.node if node.op_type != "Constant")
    return {
        "convolution": sum(count for name, count in operations.items() if name.startswith("Conv")),
        "batch_norm": operations["BatchNormalization"],
        "join": _joins(graph.node, [one.name for one in graph.input]),
        "total": operations.total(),
        **dict(sorted(operations.items())),
    }


def host() -> None:
    """The files depend on no machine: any machine's will do for all."""


def unavailable() -> Unavailable | None:
    """None where ONNX Runtime is installed."""
    if versions("onnxruntime")["onnxruntime"] is not None:
        return None
    return Unavailable("ONNX Runtime is not installed.", "Install it: pip install onnxruntime.")


def open_session(file: Path, threads: int) -> "Callable[[np.ndarray], np.ndarray]":
    """Load an ONNX file into ONNX Runtime on the CPU.

    Args:
        file: an .onnx with one input and one output.
        threads: that one operation is spread over; operations run one after another.

    Returns:
        float32 (N, 3, H, W) of the file's own shape -> float32 logits (N, classes).

    Raises:
        InputError: the file is not a valid ONNX model.
        StageError: ONNX Runtime refuses it.
    """
    check(file)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise StageError(
            f"ONNX Runtime {onnxruntime.__version__} refuses {file}: {' '.join(str(error).split())[:300]}. "
            f"Export it again, or install a newer onnxruntime."
        ) from error
    one = session.get_inputs()[0]

    def run(images: "np.ndarray") -> "np.ndarray":
        if list(images.shape) != one.shape:
            raise InputError(f"{file} takes an input of shape {tuple(one.shape)}, but got {images.shape}.")
        return session.run(None, {one.name: images})[0]

    return run


open_check_session = open_session


def _joins(nodes: "Sequence[onnx.NodeProto]", inputs: Sequence[str]) -> int:
    """How many nodes add values of which two or more depend on the input; the nodes are in order of execution."""
    computed, joins = set(inputs), 0
    for node in nodes:
        depending = computed.intersection(node.input)
        joins += node.op_type in ("Add", "Sum") and len(depending) > 1
        if depending:
            computed.update(node.output)
    return joins


def _strip(model: "onnx.ModelProto") -> None:
    """Drop what the exporter notes for debugging: source lines and paths of the machine it ran on."""
    del model.metadata_props[:]
    graph = model.graph
    for part in (graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        part.doc_string = ""
        del part.metadata_props[:]


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{next(iter(str(error).splitlines()), type(error).__name__).rstrip('.')}."
