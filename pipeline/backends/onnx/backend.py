"""ONNX: the file that TensorRT builds from, and ONNX Runtime, which runs it on any CPU as a reference.

ONNX Runtime has no float16 arithmetic on most CPUs: it computes a float16 file in float32, and leaves out
the rounding between operations, so that an overflow at 65,504 does not show. Hence three sessions:
`open_session` is the file as ONNX Runtime runs it, for timing; `open_check_session` rounds what each
operation gives to float16, as the file says; `open_exact_session` rounds nothing.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts.manifest import ExportSpec, Unavailable, versions
from pipeline.artifacts.samples import fitting
from pipeline.backends.base import Backend
from pipeline.backends.onnx.int8_weights import store_turned
from pipeline.backends.onnx.model_file import census, check, signature
from pipeline.backends.runtime import Runtime, Session
from pipeline.errors import InputError, StageError, first_line
from pipeline.models.passes.dynamic_batch import with_open_batch
from pipeline.models.passes.float16 import half
from pipeline.quiet import quiet

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import torch

PACKAGES = ("torch", "onnx", "onnxscript", "onnx-ir")
RUN_BY = ("onnxruntime",)
CHECKED_BY = "ONNX Runtime"

OPSET = 18
"""The exporter's own: a later one would be converted to. TensorRT 10.3 (JetPack 6) reads up to 20."""


def export(program: "torch.export.ExportedProgram", files: Sequence[Path], spec: ExportSpec) -> dict[str, Any]:
    """Write a program as one self-contained ONNX file, the same bytes for the same program.

    Args:
        program: float32, of static shape ``spec.input_shape``.
        files: where the one .onnx goes; its weights are inside.
        spec: ``fp16`` gives float16 tensors between a cast of the float32 input and one of each output,
            so that the file itself carries the precision. The option ``dynamic_batch``, a mapping with
            ``min`` and ``max``, leaves the first dimension of input and outputs open.

    Each node of the file bears the name of the program's node that it came from, so that a runtime's own
    profile can be read; where several came from one, the last does, and the others add their operation to it.

    Returns:
        ``opset``.

    Raises:
        InputError: the target's batch is not within ``dynamic_batch``.
        StageError: an operation has no ONNX counterpart, or needs the batch that it was traced with.
    """
    batches = spec.options.get("dynamic_batch")
    if batches and not batches["min"] <= spec.input_shape[0] <= batches["max"]:
        raise InputError(
            f"`batch` is {spec.input_shape[0]}, which is not within `dynamic_batch`, {batches['min']} to "
            f"{batches['max']}. Check and bench run at `batch`: set it to one of these."
        )
    with quiet():
        import torch

        if spec.precision == "fp16":
            program = half(program)
        try:
            if batches:
                program = with_open_batch(program, batches["min"], batches["max"])
            exported = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=list(spec.inputs),
                output_names=list(spec.output_names),
                external_data=False,
            )
            model = exported.model_proto
        except torch.onnx.OnnxExporterError as error:
            raise StageError(
                f"the network cannot be written as ONNX: {first_line(error)}. Replace the operation in the "
                f"network, or leave this target out."
            ) from error
    _name_nodes(model, exported.exported_program)
    _name_batch(model.graph)
    store_turned(model.graph)
    _strip(model)
    files[0].write_bytes(model.SerializeToString(deterministic=True))
    check(files[0])
    return {"opset": OPSET}


def unavailable() -> Unavailable | None:
    """None where ONNX Runtime is installed."""
    if versions("onnxruntime")["onnxruntime"] is not None:
        return None
    return Unavailable("ONNX Runtime is not installed.", "Install it: pip install onnxruntime.")


def open_session(file: Path, threads: int) -> Session:
    """Load an ONNX file into ONNX Runtime on the CPU, as ONNX Runtime runs it.

    Args:
        file: an .onnx.
        threads: that one operation is spread over; operations run one after another.

    Returns:
        A session for the file's own input shapes.

    Raises:
        InputError: the file is not a valid ONNX model.
        StageError: ONNX Runtime refuses it.
    """
    check(file)
    return _session(file, file, threads)


def open_check_session(file: Path, threads: int) -> Session:
    """Like `open_session`, in the file's own arithmetic: each float16 value is rounded to float16.

    An operation still adds up in float32 and is rounded once, at its end; what is too large for float16
    becomes infinite. Kernels of a GPU differ from that in the order and the width of their sums.
    """
    return _session(file, _in_float32(check(file), rounded=True), threads)


def open_exact_session(file: Path, threads: int) -> Session:
    """Like `open_session`, in float32 throughout, on the weights as they are stored.

    Every float16 tensor, constant and cast of the file is made float32, so the input is not rounded either.
    """
    return _session(file, _in_float32(check(file), rounded=False), threads)


def outputs_by_layer(file: Path, image: "np.ndarray", *, exact: bool = False) -> "dict[str, np.ndarray]":
    """What each operation of an ONNX file gives, in the order of execution; nothing is fused or left out.

    Args:
        file: an .onnx of this backend.
        image: float32 (N, 3, H, W) of the file's own shape.
        exact: in the arithmetic of `open_exact_session`; default: in that of `open_check_session`.

    Returns:
        By the name of the program's node that the operation came from (the last, where several did; where
        an operation has several outputs, ``name/0`` and so on; where it has no name, that of its output):
        float32, of the operation's shape. What is no float, a shape say, is left out.

    Raises:
        InputError: the file is not a valid ONNX model, or the image has another shape.
        StageError: ONNX Runtime refuses it.
    """
    import onnx

    model = check(file)
    values = {}
    for node in (node for node in model.graph.node if node.op_type != "Constant"):
        for place, value in enumerate(node.output):
            name = node.name or value  # a node need not have a name
            values[value] = name if len(node.output) == 1 else f"{name}/{place}"
    values.pop("", None)  # an output that is not asked for
    model = _in_float32(model, rounded=not exact)
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(value) for value in values)
    session = _start(file, model, threads=1, optimized=False)
    found = zip(values.values(), session.run(None, _fed(file, session, image)), strict=True)
    return {name: value for name, value in found if value.dtype.kind == "f"}


def _session(file: Path, content: "Path | onnx.ModelProto", threads: int) -> Session:
    session = _start(file, content, threads)

    def run(images: "np.ndarray") -> "list[np.ndarray]":
        return session.run(None, _fed(file, session, images))

    return run


def _start(file: Path, content: "Path | onnx.ModelProto", threads: int, optimized: bool = True) -> Any:
    """An InferenceSession of the file, or of what was made of it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    read = content if isinstance(content, Path) else content.SerializeToString()
    try:
        return onnxruntime.InferenceSession(read, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise StageError(
            f"ONNX Runtime {onnxruntime.__version__} refuses {file}: {' '.join(str(error).split())[:300]}. "
            f"Export it again, or install a newer onnxruntime."
        ) from error


def _fed(file: Path, session: Any, images: "np.ndarray") -> "dict[str, np.ndarray]":
    """The inputs by name; a dimension that the file leaves open has a name in the place of a number there."""
    taken = session.get_inputs()
    shapes = [tuple(size if isinstance(size, int) else None for size in one.shape) for one in taken]
    return dict(zip((one.name for one in taken), fitting(images, shapes, file), strict=True))


def _in_float32(model: "onnx.ModelProto", rounded: bool) -> "onnx.ModelProto":
    """The model with float32 in place of float16 everywhere; `rounded`: each value is still rounded to float16."""
    import onnx
    from onnx import TensorProto, helper

    types = onnx.shape_inference.infer_shapes(model).graph.value_info
    halves = {value.name for value in types if value.type.tensor_type.elem_type == TensorProto.FLOAT16}
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    graph = wide.graph
    for tensor in graph.initializer:
        _widen(tensor)
    for end in (*graph.input, *graph.output):
        if end.type.tensor_type.elem_type == TensorProto.FLOAT16:
            end.type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.node[:], graph.value_info[:]
    for node in model.graph.node:
        graph.node.append(node)
        node = graph.node[-1]
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
            if attribute.HasField("t"):
                _widen(attribute.t)
        for place, name in enumerate(node.output):
            if rounded and name in halves and node.op_type != "Constant":
                node.output[place] = f"{name}/whole"
                down = helper.make_node("Cast", [f"{name}/whole"], [f"{name}/half"], to=TensorProto.FLOAT16)
                up = helper.make_node("Cast", [f"{name}/half"], [name], to=TensorProto.FLOAT)
                graph.node.extend([down, up])
    return wide


def _widen(tensor: "onnx.TensorProto") -> None:
    from onnx import TensorProto, numpy_helper

    if tensor.data_type == TensorProto.FLOAT16:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name))


def _name_nodes(model: "onnx.ModelProto", decomposed: "torch.export.ExportedProgram") -> None:
    """Name each node of the file by the program's node that it came from; see `export`.

    The exporter notes on each which node it came from of the program as it decomposed it, and that one
    notes its own origin.
    """
    origins = {
        node.name: node.meta["from_node"][-1].name if node.meta.get("from_node") else node.name
        for node in decomposed.graph.nodes
    }
    last: dict[str, onnx.NodeProto] = {}
    for node in model.graph.node:
        notes = {note.key: note.value for note in node.metadata_props}
        if made_from := re.match(r"%(\w+) :", notes.get("pkg.torch.onnx.fx_node", "")):
            name = origins[made_from[1]]
            if name in last:
                last[name].name = f"{name}/{last[name].output[0]}"
            last[name], node.name = node, name


def _name_batch(graph: "onnx.GraphProto") -> None:
    """Call an open first dimension ``batch``; the exporter takes a name that its tracer made up."""
    traced = graph.input[0].type.tensor_type.shape.dim[0].dim_param  # the inputs share it
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if traced and size.dim_param:
                size.dim_param = re.sub(rf"\b{traced}\b", "batch", size.dim_param)


def _strip(model: "onnx.ModelProto") -> None:
    """Drop what the exporter notes for debugging: source lines and paths of the machine it ran on."""
    del model.metadata_props[:]
    graph = model.graph
    for part in (graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        part.doc_string = ""
        del part.metadata_props[:]


RUNTIME = Runtime(
    open_session=open_session,
    open_check_session=open_check_session,
    open_exact_session=open_exact_session,
    outputs_by_layer=outputs_by_layer,
)
BACKEND = Backend(
    name="onnx",
    title="ONNX Runtime",
    runtime=RUNTIME,
    checked_by=CHECKED_BY,
    suffixes=(".onnx",),
    packages=PACKAGES,
    run_by=RUN_BY,
    signature=signature,
    census=census,
    unavailable=unavailable,
    export=export,
    files=lambda: ("{form}.onnx",),
    stands_in_for=("fp32",),  # in int8 it computes as integers only where no ReLU comes before the rounding
)
