"""What an ONNX file holds: read and held against the specification, its operations counted, its input and output."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.backends.onnx.functions import inlined
from pipeline.backends.signatures import Shape, Signature, Tensor
from pipeline.errors import InputError, first_line, quoted, reading
from pipeline.regular_file import content_of

if TYPE_CHECKING:
    import onnx


def check(file: Path) -> "onnx.ModelProto":
    """Read an ONNX file and hold it against the specification. Calls of the file's own functions are written out.

    Raises:
        InputError: it is missing, empty, cut short, of another kind, or not valid; it has loops or branches, which can
            take a time and a memory that nothing in the file tells, or functions that grow to more than a network has.
    """
    import onnx

    again = "Copy it again or run the export again."
    try:
        content = content_of(file)
        model = onnx.load_model_from_string(content)
        onnx.checker.check_model(model)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}. Run the export again.") from None
    except Exception as error:  # onnx's checker raises many kinds
        what = "is empty" if not content else f"does not hold a valid ONNX model ({first_line(error)})"
        raise InputError(f"{file} {what}. {again}") from None
    if not model.graph.node or not model.graph.output:
        raise InputError(f"{file} is an ONNX model without a network. {again}")
    kinds = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    nodes = (node for part in (model.graph, *model.functions) for node in part.node)
    nested = [node.op_type for node in nodes if any(one.type in kinds for one in node.attribute)]
    if nested:
        raise InputError(
            f"{file} holds the operation {quoted(nested[0])}, which runs a graph of its own, and only plain graphs are "
            "read. Export a network without loops and branches on values."
        )
    return inlined(model, file) if model.functions else model


def census(file: Path) -> dict[str, int]:
    """Operations of an ONNX file by type, without constants; and ``convolution``, ``batch_norm``, ``join``, ``int8``,
    ``total``.

    torch's exporter folds a batch norm that follows a convolution; any other stays. ``join`` counts additions of
    two values that depend on the input: a branch that was not folded ends in one. ``int8`` counts the
    convolutions and linear layers between DequantizeLinear and QuantizeLinear, whose weights are int8 too.

    Raises:
        InputError: the file is not a valid ONNX model.
    """
    graph = check(file).graph
    with reading(file):
        return _census(graph)


def _census(graph: "onnx.GraphProto") -> dict[str, int]:
    operations = Counter(node.op_type for node in graph.node if node.op_type != "Constant")
    return {
        "convolution": sum(count for name, count in operations.items() if name.startswith("Conv")),
        "batch_norm": operations["BatchNormalization"],
        "join": _joins(graph.node, [one.name for one in graph.input]),
        "int8": _int8(graph),
        "total": operations.total(),
        **dict(sorted(operations.items())),
    }


def signature(file: Path) -> Signature:
    """What an ONNX file takes and gives. InputError where it is not a valid ONNX model."""
    graph = check(file).graph
    with reading(file):
        weights = {one.name for one in graph.initializer}
        taken, *more = (one for one in graph.input if one.name not in weights)
        outputs = tuple(map(_tensor, graph.output))
        return Signature(_tensor(taken), outputs, _shape(taken), further=tuple(map(_tensor, more)))


def _tensor(value: "onnx.ValueInfoProto") -> Tensor:
    return Tensor(_shape(value), value.name, _dtype(value))


def _dtype(value: "onnx.ValueInfoProto") -> str:
    from onnx import helper

    return helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name


def _shape(value: "onnx.ValueInfoProto") -> Shape:
    sizes = value.type.tensor_type.shape.dim
    return tuple(size.dim_value if size.HasField("dim_value") else None for size in sizes)


def _joins(nodes: "Sequence[onnx.NodeProto]", inputs: Sequence[str]) -> int:
    """Number of additions with two or more operands that depend on the input; nodes are in order of execution."""
    computed, joins = set(inputs), 0
    for node in nodes:
        depending = computed.intersection(node.input)
        joins += node.op_type in ("Add", "Sum") and len(depending) > 1
        if depending:
            computed.update(node.output)
    return joins


def _int8(graph: "onnx.GraphProto") -> int:
    """How many layers compute on int8: both operands come from it, and the result, or what a MatMul's bias and an
    activation make of it, goes to it."""
    from onnx import TensorProto

    made_by = {name: node for node in graph.node for name in node.output}
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)

    def is_from_int8(name: str) -> bool:
        made = made_by.get(name)
        if made is None or made.op_type != "DequantizeLinear":
            return False
        source = made_by.get(made.input[0])
        is_quantized = source is not None and source.op_type == "QuantizeLinear"
        return is_quantized or types.get(made.input[0]) == TensorProto.INT8

    def goes_to_int8(name: str, steps: int) -> bool:
        return any(
            user.op_type == "QuantizeLinear" or (steps and goes_to_int8(user.output[0], steps - 1))
            for user in users.get(name, ())
        )

    layers = [node for node in graph.node if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")]
    return sum(
        all(map(is_from_int8, node.input[:2])) and goes_to_int8(node.output[0], 2 if node.op_type == "MatMul" else 1)
        for node in layers
    )
