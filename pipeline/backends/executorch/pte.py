"""Read an ExecuTorch file: its kernels and the graphs that it delegates to XNNPACK.

Read from the bytes alone, without ExecuTorch's exporter (seconds of import) or its runtime (which a
damaged file can kill). A .pte is a FlatBuffer by the schema `program.fbs`, followed by segments; a
segment of XNNPACK's is a header ``XH00``, a FlatBuffer by the schema `schema.fbs`, and weights. Both
schemas only ever grow at the end, so the slots that are used here stay.
"""

import re
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from pipeline.backends.executorch.flatbuffer import FlatBuffer
from pipeline.errors import InputError, StageError, reading
from pipeline.regular_file import content_of

_MAGIC, _EXTENDED, _XNNPACK = b"ET12", b"eh00", b"XH00"
_KERNEL_CALL, _DELEGATE_CALL, _TENSOR = 1, 2, 5
_DTYPES = {0: "uint8", 1: "int8", 5: "float16", 6: "float32", 7: "float64"}  # of ExecuTorch's ScalarType
_QUANTIZED_TENSOR = 2
_EXTERNAL_INPUT = 1
_INT8 = {3, 6}  # with one scale, and with one for each channel
_LAYERS = {  # where a node's table has its input, filter and output
    "XNNConv2d": (15, 16, 18),
    "XNNDepthwiseConv2d": (15, 16, 18),
    "XNNConvTranspose2d": (15, 16, 18),
    "XNNFullyConnected": (0, 1, 3),
}


@dataclass(frozen=True)
class Contents:
    """What a .pte runs, in numbers.

    Attributes:
        kernels: calls of ExecuTorch's own kernels, outside any delegate, by operator.
        delegates: calls of a delegate, by its name.
        nodes: nodes of the XNNPACK graphs, by kind, e.g. ``XNNConv2d``.
        joins: how many of those nodes add two values that XNNPACK computed.
        int8: how many of those nodes are convolutions or products that read int8 and weights of int8, and give int8.
    """

    kernels: Counter[str]
    delegates: Counter[str]
    nodes: Counter[str]
    joins: int
    int8: int


def read_whole(file: Path) -> bytes:
    """The bytes of a .pte that is what its header says.

    Raises:
        InputError: it is missing, empty, of another kind, or cut short.
    """
    try:
        data = content_of(file)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}. Run the export again.") from None
    if data[4:8] != _MAGIC:
        what = "is empty" if not data else f"starts with {data[:8]!r}, not with the mark `{_MAGIC.decode()}`"
        raise InputError(f"{file} is not an ExecuTorch program: it {what}. Run the export again.")
    needed = len(data)
    if data[8:12] == _EXTENDED and len(data) >= 40:
        length, program, base, segments = struct.unpack_from("<IQQQ", data, 12)
        needed = max(program, base + (segments if length > 24 else 0))
    needed = max(needed, 40)
    if len(data) < needed:
        raise InputError(f"{file} is cut short: {len(data)} bytes of {needed}. Copy it again or run the export again.")
    return data


def read(file: Path) -> Contents:
    """What a .pte runs.

    Raises:
        InputError: the file is not a whole ExecuTorch program.
    """
    data = FlatBuffer(read_whole(file))
    with reading(file):
        return _contents(data)


def tensors(file: Path) -> tuple[list[tuple[tuple[int, ...], str]], ...]:
    """Shape, as it is planned, and type of each input and of each output of a .pte.

    Raises:
        InputError: the file is not a whole ExecuTorch program, or its input or output is no tensor.
    """
    data = FlatBuffer(read_whole(file))
    with reading(file):
        plan = next(data.tables(data.root(), 1))
        values = list(data.tables(plan, 2))
        return tuple([_tensor(data, values[one]) for one in data.numbers(plan, slot)] for slot in (3, 4))


def _tensor(data: FlatBuffer, value: int) -> tuple[tuple[int, ...], str]:
    if data.scalar(value, 0, "<B") != _TENSOR:
        raise IndexError("its input or output is no tensor")
    tensor = _child(data, value, 1)
    number = data.scalar(tensor, 0, "<b")
    return data.numbers(tensor, 2), _DTYPES.get(number, f"type {number}")


def _contents(data: FlatBuffer) -> Contents:
    program = data.root()
    base = struct.unpack_from("<Q", data.content, 24)[0] if data.content[8:12] == _EXTENDED else 0
    segments = [base + data.scalar(segment, 0, "<Q") for segment in data.tables(program, 4)]
    inline = [_child(data, blob, 0) + 4 for blob in data.tables(program, 3)]
    kernels, delegates, nodes, joins, int8 = Counter(), Counter(), Counter(), 0, 0
    for plan in data.tables(program, 1):
        operators = [_operator(data, table) for table in data.tables(plan, 6)]
        backends = list(data.tables(plan, 7))
        for chain in data.tables(plan, 5):
            for instruction in data.tables(chain, 2):
                kind, call = data.scalar(instruction, 0, "<B"), _child(data, instruction, 1)
                if kind == _KERNEL_CALL:
                    kernels[operators[data.scalar(call, 0, "<i")]] += 1
                elif kind == _DELEGATE_CALL:
                    backend = backends[data.scalar(call, 0, "<i")]
                    name = data.text(backend, 0)
                    delegates[name] += 1
                    if name == "XnnpackBackend":
                        where = _child(data, backend, 1)
                        places = segments if data.scalar(where, 0, "<b") else inline
                        graph = _xnnpack_graph(data, places[data.scalar(where, 1, "<I")])
                        found = list(_xnnpack_nodes(data, graph))
                        nodes.update(kind for kind, _ in found)
                        joins += _joins(data, graph, [node for kind, node in found if kind == "XNNAdd"])
                        int8 += _int8(data, graph, found)
    return Contents(kernels, delegates, nodes, joins, int8)


def _xnnpack_graph(data: FlatBuffer, at: int) -> int:
    if data.content[at + 4 : at + 8] == _XNNPACK:
        at += struct.unpack_from("<I", data.content, at + 10)[0]
    return data.root(at)


def _xnnpack_nodes(data: FlatBuffer, graph: int) -> Iterator[tuple[str, int]]:
    """Each node's kind, and its table."""
    kinds = _xnnpack_kinds()
    for node in data.tables(graph, 1):
        yield kinds[data.scalar(node, 0, "<B") - 1], _child(data, node, 1)


def _joins(data: FlatBuffer, graph: int, additions: list[int]) -> int:
    """How many additions have two inputs that the graph itself computed: neither a constant nor from outside."""
    given = set()
    for tensor in _xnnpack_tensors(data, graph):
        place_among_constants, flags = (data.scalar(tensor, slot, "<I") for slot in (3, 5))
        if place_among_constants or flags & _EXTERNAL_INPUT:
            given.add(data.scalar(tensor, 6, "<I"))
    inputs = [{data.scalar(node, slot, "<I") for slot in (0, 1)} for node in additions]
    return sum(not pair & given for pair in inputs)


def _int8(data: FlatBuffer, graph: int, nodes: list[tuple[str, int]]) -> int:
    """How many convolutions and products have an input, a filter and an output of int8."""
    types = {data.scalar(tensor, 6, "<I"): data.scalar(tensor, 0, "<h") for tensor in _xnnpack_tensors(data, graph)}
    return sum(
        {types[data.scalar(node, slot, "<I")] for slot in _LAYERS[kind]} <= _INT8
        for kind, node in nodes
        if kind in _LAYERS
    )


def _xnnpack_tensors(data: FlatBuffer, graph: int) -> Iterator[int]:
    """The table of each value, which says its type and its number."""
    for value in data.tables(graph, 2):
        tensor = _child(data, value, 1)
        yield _child(data, tensor, 0) if data.scalar(value, 0, "<B") == _QUANTIZED_TENSOR else tensor


@cache
def _xnnpack_kinds() -> list[str]:
    """Names of XNNPACK's nodes in the order of their numbers, as the installed ExecuTorch writes them."""
    package = find_spec("executorch")
    for folder in package.submodule_search_locations if package else ():
        schema = Path(folder, "backends/xnnpack/serialization/schema.fbs")
        if schema.exists():
            union = re.search(r"union XNodeUnion \{(.*?)\}", schema.read_text(), re.DOTALL)
            return re.findall(r"^\s*(XNN\w+)", union[1], re.MULTILINE)
    raise StageError(
        "the operations of a .pte cannot be counted: ExecuTorch, whose schema names them, is not installed. "
        "Install it: pip install executorch."
    )


def _operator(data: FlatBuffer, table: int) -> str:
    name, overload = data.text(table, 0), data.text(table, 1)
    return f"{name}.{overload}" if overload else name


def _child(data: FlatBuffer, table: int, slot: int) -> int:
    at = data.child(table, slot)
    if at is None:
        raise IndexError("a part of it is missing")
    return at
