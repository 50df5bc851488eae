"""The part of a captured graph that does not depend on the input, evaluated in float64 when asked for."""

from collections.abc import Mapping

import torch
from torch import Tensor, fx

aten = torch.ops.aten

_FILLS = {aten.zeros.default: 0.0, aten.ones.default: 1.0, aten.zeros_like.default: 0.0, aten.ones_like.default: 1.0}
_FULL = {aten.full.default, aten.full_like.default}
_SPREADS = {aten.expand.default, aten.copy.default}
_KEPT = 2**16  # elements up to which a computed constant is held


class Constants:
    """Parameters, buffers and all that the graph computes of them alone, such as `weight + identity`.

    A constant that is spread over the size of an image, `expand(v, (1, C, height, 2))` say, is held unspread:
    its value is then v, of a shape that broadcasts to the node's, and it is a constant for elementwise calls.

    Args:
        graph: A captured graph.
        tensors: Parameters, buffers and constants by the target of their get_attr nodes.
    """

    def __init__(self, graph: fx.Graph, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self._known: dict[fx.Node, bool] = {}  # constant node to whether it is spread
        self._values: dict[fx.Node, Tensor] = {}
        for node in graph.nodes:
            spread = self._is_spread(node)
            if spread is not None:
                self._known[node] = spread

    def __contains__(self, node: object) -> bool:
        return node in self._known

    def is_whole(self, node: fx.Node) -> bool:
        """Whether the node is a constant whose value has the node's own shape."""
        return self._known.get(node) is False

    def value(self, node: fx.Node) -> Tensor:
        """The value of a constant node; floating dtypes as float64."""
        if node not in self._values:
            value = self._compute(node)
            if node.op == "get_attr" or value.numel() > _KEPT:
                return value
            self._values[node] = value
        return self._values[node]

    def _is_spread(self, node: fx.Node) -> bool | None:
        """Whether a constant node is spread over free sizes; None where the node is no constant."""
        if node.op == "get_attr":
            return False if node.target in self._tensors else None
        if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor):
            return None
        if node.target in _FILLS or node.target in _FULL:
            return True
        if node.target in _SPREADS:
            source = node.args[1] if node.target is aten.copy.default else node.args[0]
            return True if source in self._known else None
        tags = getattr(node.target, "tags", ())
        if torch.Tag.nondeterministic_seeded in tags:
            return None
        if any(one not in self._known for one in node.all_input_nodes):
            return None
        spread = any(self._known[one] for one in node.all_input_nodes)
        return spread if not spread or torch.Tag.pointwise in tags else None

    def _compute(self, node: fx.Node) -> Tensor:
        if node.op == "get_attr":
            return _wide(self._tensors[node.target])
        if node.target in _FILLS or node.target in _FULL:
            like = node.meta["val"]
            fill = _FILLS[node.target] if node.target in _FILLS else node.args[1]
            return torch.full([1] * like.dim(), fill, dtype=torch.float64 if like.is_floating_point() else like.dtype)
        if node.target in _SPREADS:
            value = self.value(node.args[1] if node.target is aten.copy.default else node.args[0])
            return value.reshape([1] * (node.meta["val"].dim() - value.dim()) + list(value.shape))
        args = fx.map_arg(node.args, self.value)
        options = {
            name: torch.float64 if isinstance(option, torch.dtype) and option.is_floating_point else option
            for name, option in fx.map_arg(node.kwargs, self.value).items()
        }
        return _wide(node.target(*args, **options))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double() if tensor.is_floating_point() else tensor.detach().cpu()
