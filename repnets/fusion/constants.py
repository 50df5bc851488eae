"""The part of a captured graph that does not depend on the input, evaluated in float64 when asked for."""

from collections.abc import Container, Mapping

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map_only

from repnets.fusion.graph import aten, is_random

_FILLS = {  # what they are filled with; of their tensor only the size counts
    **dict.fromkeys((aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default, aten.zero.default), 0.0),
    **dict.fromkeys((aten.ones.default, aten.ones_like.default, aten.new_ones.default), 1.0),
}
_FILLS_WITH = {  # place of the argument that they are filled with
    **dict.fromkeys((aten.full.default, aten.full_like.default, aten.fill.Scalar, aten.fill.Tensor), 1),
    aten.new_full.default: 2,
    aten.expand.default: 0,
    aten.copy.default: 1,
}
_CASTS = {aten._to_copy.default, *(getattr(aten.to, name) for name in aten.to.overloads())}
_NUMBERS = (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool)
_KEPT = 2**16  # elements up to which a computed constant is held

Value = Tensor | tuple | list | int | float


class Constants:
    """Parameters, buffers and all that the graph computes of them and of fixed sizes, such as `weight + identity`.

    A constant that is spread over the size of an image, `expand(v, (1, C, height, 2))` say, is held unspread:
    its value is then v, of a shape that broadcasts to the node's, and it is a constant for elementwise calls.

    Args:
        graph: A captured graph.
        tensors: Parameters, buffers and constants by the target of their get_attr nodes.
    """

    def __init__(self, graph: fx.Graph, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self._known: dict[fx.Node, bool] = {}  # constant node to whether it is spread, in the order of the graph
        self._place: dict[fx.Node, int] = {}
        self._values: dict[fx.Node, Value] = {}
        for place, node in enumerate(graph.nodes):
            spread = self._is_spread(node)
            if spread is not None:
                self._known[node], self._place[node] = spread, place

    def __contains__(self, node: object) -> bool:
        return node in self._known

    def is_whole(self, node: fx.Node) -> bool:
        """Whether the node is a constant whose value has the node's own shape."""
        return self._known.get(node) is False

    def value(self, node: fx.Node) -> Value:
        """The value of a constant node; floating dtypes as float64."""
        made: dict[fx.Node, Value] = {}
        for one in (*self._behind(node, self._values), node):
            made[one] = self._values[one] if one in self._values else self._compute(one, made)
            if one.op != "get_attr" and _elements(made[one]) <= _KEPT:
                self._values[one] = made[one]
        return made[node]

    def behind(self, node: fx.Node) -> list[fx.Node]:
        """The constants that a node is computed of, in the order of the graph."""
        return self._behind(node, ())

    def _behind(self, node: fx.Node, known: Container[fx.Node]) -> list[fx.Node]:
        """Those of them that a node is computed of when some are known already."""
        found: set[fx.Node] = set()
        pending = [node]
        while pending:
            one = pending.pop()
            if one not in known:
                before = [other for other in self._operands(one) if other in self._known and other not in found]
                found.update(before)
                pending.extend(before)
        return sorted(found, key=self._place.__getitem__)

    def why_not(self, node: fx.Node) -> str:
        """Why a node is no whole constant, as the rest of a sentence that begins with the node."""
        seen, pending = {node}, [node]
        sized = random = False
        while pending:
            one = pending.pop()
            if one.op == "placeholder":
                return "depends on the input"
            sized = sized or isinstance(one.meta.get("val"), _NUMBERS)
            random = random or is_random(one)
            if not isinstance(one.meta.get("val"), _NUMBERS):
                before = [other for other in one.all_input_nodes if other not in self._known and other not in seen]
                seen.update(before)
                pending.extend(before)
        if sized:
            return "depends on the size of the input"
        return "is random" if random else "is made by a call that is not evaluated before"

    def _is_spread(self, node: fx.Node) -> bool | None:
        """Whether a constant node is spread over free sizes; None where the node is no constant."""
        if node.op == "get_attr":
            return False if node.target in self._tensors else None
        value = node.meta.get("val")
        leaves = tree_leaves(value)
        if node.op != "call_function" or not leaves or not all(isinstance(one, (Tensor, *_NUMBERS)) for one in leaves):
            return None
        operands = self._operands(node)
        if node.target in _FILLS or node.target in _FILLS_WITH:
            unknown = any(one not in self._known for one in operands)
            return None if unknown else not _is_fixed(value)
        if any(one not in self._known for one in operands) or is_random(node):
            return None
        if not operands and not isinstance(value, Tensor):
            return None
        spread = any(self._known[one] for one in operands)
        pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
        return spread if not spread or pointwise else None

    def _operands(self, node: fx.Node) -> list[fx.Node]:
        """What a node's value is computed of: without a tensor of which only the size counts."""
        if node.target in _FILLS:
            return []
        if node.target in _FILLS_WITH:
            filling = node.args[_FILLS_WITH[node.target]]
            return [filling] if isinstance(filling, fx.Node) else []
        return node.all_input_nodes

    def _compute(self, node: fx.Node, made: Mapping[fx.Node, Value]) -> Value:
        """The value of a node, of those of its operands."""
        if node.op == "get_attr":
            return _wide(self._tensors[node.target])
        if node.target in _FILLS:
            return _filled(_FILLS[node.target], node.meta["val"])
        if node.target in _FILLS_WITH:
            filling = node.args[_FILLS_WITH[node.target]]
            return _filled(made.get(filling, filling), node.meta["val"])
        args, kwargs = fx.map_arg((node.args, node.kwargs), made.__getitem__)
        if node.target not in _CASTS:  # which round; other calls name a dtype for what they compute
            args, kwargs = tree_map_only(torch.dtype, _wide_dtype, (args, kwargs))
        return tree_map_only(Tensor, _wide, node.target(*args, **kwargs))


def _filled(filling: Tensor | float, like: Tensor) -> Tensor:
    """A value in the shape of a tensor whose sizes are fixed, and unspread in that of another."""
    dtype = torch.float64 if like.is_floating_point() else like.dtype
    value = torch.as_tensor(filling, dtype=dtype)
    if _is_fixed(like):
        return value.expand(like.shape)
    return value.reshape([1] * (like.dim() - value.dim()) + list(value.shape))


def _is_fixed(value: object) -> bool:
    return not any(isinstance(size, torch.SymInt) for one in tree_leaves(value) for size in one.shape)


def _elements(value: Value) -> int:
    return sum(one.numel() for one in tree_leaves(value) if isinstance(one, Tensor))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double() if tensor.is_floating_point() else tensor.detach().cpu()


def _wide_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype.is_floating_point else dtype
