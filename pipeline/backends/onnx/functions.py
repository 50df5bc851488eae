"""Functions of an ONNX file's own: their calls are written out, so that the rest of the code sees one plain graph."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InputError, first_line

if TYPE_CHECKING:
    import onnx

_DEPTH = 32  # of functions that call functions; one that calls itself is deeper than any number
_NODES, _BYTES = 100_000, 1 << 28  # of the graph that they grow to, weights left out

_Key = tuple[str, str, str]


def inlined(model: "onnx.ModelProto", file: Path) -> "onnx.ModelProto":
    """A model without functions that computes the same.

    Args:
        model: valid, without graphs within its nodes.
        file: that it was read from, for messages.

    Raises:
        InputError: the functions call each other too deep or in a circle, grow to too much, or cannot be written out.
    """
    import onnx
    import onnx.inliner

    remedy = "Export the network again with its functions inlined (onnx.inliner)."
    count, size, levels = _Sizes(model.functions).of(model.graph.node)
    if count > _NODES or size > _BYTES or levels > _DEPTH:
        raise InputError(
            f"{file} has functions that call each other more than {_DEPTH} deep, or grow to more than {_NODES:,} "
            f"operations or {_BYTES >> 20} MiB, which no network has. {remedy}"
        )
    try:
        plain = onnx.inliner.inline_local_functions(model)
        onnx.checker.check_model(plain)
    except Exception as error:  # many kinds
        raise InputError(f"{file} has functions that cannot be written out ({first_line(error)}). {remedy}") from None
    if plain.functions:
        raise InputError(f"{file} has functions of another opset than its graph. {remedy}")
    return plain


class _Sizes:
    """Operations, bytes and levels of calls that nodes have once every call in them is written out."""

    def __init__(self, functions: "Sequence[onnx.FunctionProto]") -> None:
        self.bodies = {(one.domain, one.name, one.overload): one.node for one in functions}
        self.known: dict[_Key, tuple[int, int, int]] = {}

    def of(self, nodes: "Sequence[onnx.NodeProto]", above: int = 0) -> tuple[int, int, int]:
        count = size = levels = 0
        for node in nodes:
            key = (node.domain, node.op_type, node.overload)
            called = self._of_body(key, above + 1) if key in self.bodies else (1, node.ByteSize(), 0)
            count, size, levels = count + called[0], size + called[1], max(levels, called[2])
        return count, size, levels

    def _of_body(self, key: _Key, above: int) -> tuple[int, int, int]:
        if above > _DEPTH:
            return 0, 0, above
        if key not in self.known:
            count, size, levels = self.of(self.bodies[key], above)
            self.known[key] = count, size, levels + 1
        return self.known[key]
