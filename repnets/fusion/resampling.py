"""Layers that treat each position by itself, moved to the smaller side of an upsampling or a pooling next to them.

Upsampling and average pooling make each position of a channel a mean of positions of the same channel, with weights
that sum to one. A 1x1 convolution makes each position a linear map of the channels there, plus a term. So they commute,
exactly and at every size, borders included; what differs is how many positions the convolution computes.
"""

from collections.abc import Mapping
from math import prod

from torch import fx

from repnets.fusion.cost_model import Cost, Shapes, Work
from repnets.fusion.graph import CONVOLUTIONS, arguments, aten, multiply_accumulates
from repnets.fusion.operators import Analysis
from repnets.fusion.rules import CHANNELWISE

_UPSAMPLINGS = {
    getattr(getattr(aten, name), overload)
    for name in ("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d",
                 "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d")
    for overload in ("default", "vec")
}  # fmt: skip
_POOLS = {aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default}
_ADAPTIVE = {aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default}


def move_to_fewer_positions(graph: fx.Graph, analysis: Analysis, shapes: Shapes, cost: Cost) -> bool:
    """Swap neighbours that commute where that costs less, in place.

    A layer that may fold with another one is left where it does.

    Args:
        graph: A captured graph.
        analysis: Of it, made anew where something was swapped.
        shapes: Of its tensors at the example size.
        cost: Of a call's work.

    Returns:
        Whether something was.
    """
    swapped: set[fx.Node] = set()
    for second in list(graph.nodes):
        first = _map_read(second, analysis)
        source = None if first is None else _map_read(first, analysis)
        if source is None or len(first.users) > 1 or {source, first, second} & swapped:
            continue
        moves_up = _moves_up(first, second, source, analysis)
        if not moves_up and not _moves_down(first, second, source, analysis):
            continue
        channels, sizes = (second, source) if moves_up else (source, second)
        between = (*shapes[source][:1], shapes[channels][1], *shapes[sizes][2:])
        now = _cost(first, shapes[source], shapes[first], shapes, cost)
        now += _cost(second, shapes[first], shapes[second], shapes, cost)
        then = _cost(second, shapes[source], between, shapes, cost)
        then += _cost(first, between, shapes[second], shapes, cost)
        if then < now:
            value = [one.meta["val"] for one in (source, channels, sizes)]
            shape = (value[0].shape[0], value[1].shape[1], *value[2].shape[2:])
            first.meta["val"], second.meta["val"] = second.meta["val"], value[0].new_empty(shape)
            second.replace_all_uses_with(first)
            second.replace_input_with(first, source)
            first.replace_input_with(source, second)
            second.append(first)
            swapped |= {source, first, second}
    return bool(swapped)


def _map_read(node: fx.Node, analysis: Analysis) -> fx.Node | None:
    """The feature map that a call reads; None where it reads several or none."""
    if node.op != "call_function" or node not in analysis.operators:
        return None
    maps = [one for one in node.all_input_nodes if one in analysis.operators]
    return maps[0] if len(maps) == 1 else None


def _moves_up(first: fx.Node, second: fx.Node, source: fx.Node, analysis: Analysis) -> bool:
    """Whether `second` may be computed before the upsampling or pooling `first`."""
    if not (_is_mean_of_positions(first) and _is_pointwise(second, analysis)) or _folds_after(first, analysis):
        return False
    return second.target in CONVOLUTIONS or _folds_before(source, analysis)


def _moves_down(first: fx.Node, second: fx.Node, source: fx.Node, analysis: Analysis) -> bool:
    """Whether the convolution `first` may be computed after the upsampling or pooling `second`."""
    if not (_is_mean_of_positions(second) and _is_pointwise(first, analysis)):
        return False
    return first.target in CONVOLUTIONS and not _folds_before(source, analysis)


def _folds_before(source: fx.Node, analysis: Analysis) -> bool:
    """Whether what reads a map may fold with what makes it."""
    return len(analysis.operators[source]) > 1


def _folds_after(source: fx.Node, analysis: Analysis) -> bool:
    """Whether what reads a map may fold with a window further down, which cannot be moved with it."""
    return any(source in found and not found[source].is_pointwise for found in analysis.operators.values())


def _is_pointwise(node: fx.Node, analysis: Analysis) -> bool:
    """Whether each position of a call's output is a linear map of the channels there, plus a term."""
    op = analysis.operators[node].get(_map_read(node, analysis))
    return node.target in (CONVOLUTIONS | CHANNELWISE.keys()) and op is not None and op.is_pointwise and not op.pooled


def _is_mean_of_positions(node: fx.Node) -> bool:
    """Whether each position of a call's output is a mean of positions of its input, channel by channel."""
    if node.target in _POOLS:
        named = arguments(node)
        padded = any(named["padding"]) and named["count_include_pad"]
        return not padded and named.get("divisor_override") is None
    return node.target in _UPSAMPLINGS | _ADAPTIVE


def _cost(
    node: fx.Node, read: tuple[int, ...], made: tuple[int, ...], shapes: Mapping[fx.Node, tuple[int, ...]], cost: Cost
) -> float:
    """The cost of a call for maps of these shapes."""
    constants = sum(prod(shapes[one]) for one in node.all_input_nodes if one.op == "get_attr" and one in shapes)
    macs = multiply_accumulates(
        node, {**{one: shapes[one] for one in node.all_input_nodes if one in shapes}, node: made}
    )
    return cost(Work(macs, 4 * (prod(read) + prod(made) + constants)))
