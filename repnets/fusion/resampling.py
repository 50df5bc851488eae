"""Layers that treat each position by itself, moved before the upsampling that they read.

Upsampling makes each position of a channel a mean of positions of the same channel, with weights that sum to one.
A 1x1 convolution makes each position a linear map of the channels there, plus a term. So they commute, exactly and at
every size, borders included; what differs is how many positions the convolution computes.
"""

from math import prod

from torch import fx

from repnets.fusion.cost_model import Cost, Shapes, work_of_node
from repnets.fusion.graph import CONVOLUTIONS, aten
from repnets.fusion.operators import Analysis
from repnets.fusion.rules import CHANNELWISE

_UPSAMPLINGS = {
    getattr(getattr(aten, name), overload)
    for name in ("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d",
                 "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d")
    for overload in ("default", "vec")
}  # fmt: skip


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
        if not _may_move(second, first, source, analysis):
            continue
        if prod(shapes[source][2:]) >= prod(shapes[first][2:]):
            continue
        between = (*shapes[source][:1], shapes[second][1], *shapes[source][2:])
        now = cost(work_of_node(first, shapes)) + cost(work_of_node(second, shapes))
        then = cost(work_of_node(second, {**shapes, first: shapes[source], second: between}))
        then += cost(work_of_node(first, {**shapes, source: between, first: shapes[second]}))
        if then < now:
            value = source.meta["val"]
            shape = (value.shape[0], second.meta["val"].shape[1], *value.shape[2:])
            first.meta["val"], second.meta["val"] = second.meta["val"], value.new_empty(shape)
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


def _may_move(node: fx.Node, upsampling: fx.Node, source: fx.Node, analysis: Analysis) -> bool:
    """Whether a call may be computed before the upsampling that it reads."""
    if upsampling.target not in _UPSAMPLINGS or not _is_pointwise(node, analysis) or _folds_after(upsampling, analysis):
        return False
    return node.target in CONVOLUTIONS or _folds_before(source, analysis)


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
