"""Which parts of a captured graph are one affine convolution, and why the other candidates are not.

One forward pass gives every node its operators, `operators[node] = {source: operator}`: what the node
computes relative to each tensor upstream from which it is an affine convolution. One backward pass then picks
regions, a (source, target) pair each, by honest accounting: only nodes that nothing outside the region uses
count as removed, and a region must remove a convolution and one more node at least, for no more
multiply-accumulates.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, fx

from repnets import kernels
from repnets.graphs import (
    ADD,
    BATCH_NORM,
    CONVOLUTIONS,
    arguments,
    module_path,
    multiply_accumulates,
    positions,
)
from repnets.kernels import AffineConv

Shapes = Mapping[fx.Node, tuple[int, ...]]
Operators = dict[fx.Node, AffineConv]  # of one node, by source, sources in the order of the graph


@dataclass(frozen=True, eq=False)
class Region:
    """A part of the graph that is one affine convolution.

    Attributes:
        source: The node whose output the region reads.
        target: The node whose output the region makes.
        operator: The target as a function of the source.
        body: All nodes that take part, in the order of the graph, target last.
        removed: Those of the body that nothing else uses, and that folding therefore removes.
    """

    source: fx.Node
    target: fx.Node
    operator: AffineConv
    body: tuple[fx.Node, ...]
    removed: tuple[fx.Node, ...]


@dataclass(frozen=True)
class Refusal:
    """A batch norm, sum or convolution that stays as it is.

    Attributes:
        node: Name of the node in the captured graph.
        path: Qualified name of the module it belongs to; empty for the root.
        reason: Why it was not folded, as the rest of a sentence that begins with the node.
    """

    node: str
    path: str
    reason: str


def refuse(node: fx.Node, reason: str) -> Refusal:
    return Refusal(node.name, module_path(node), reason)


def find_regions(graph: fx.Graph, tensors: Mapping[str, Tensor], shapes: Shapes) -> tuple[list[Region], list[Refusal]]:
    """The regions worth folding and the refused candidates, both in the order of the graph.

    Args:
        graph: A captured graph with its batch norms flattened.
        tensors: Parameters, buffers and constants by the target of their get_attr nodes.
        shapes: Shape of each node's tensor at the example size, by which costs are weighed.
    """
    operators, obstacles = _operators(graph, tensors)
    order = {node: place for place, node in enumerate(graph.nodes)}
    regions: list[Region] = []
    refusals: list[Refusal] = []
    removed: set[fx.Node] = set()
    sources: set[fx.Node] = set()
    for target in reversed(graph.nodes):
        if target not in operators or target in removed:
            continue
        reasons = [obstacles[target]] if target in obstacles else []
        candidates = []
        for source in operators[target]:
            if source is target:
                continue
            region = _region(source, target, operators, order, removed, sources)
            obstacle = _not_worthwhile(region, shapes)
            if obstacle is None:
                candidates.append(region)
            else:
                reasons.append(obstacle)
        if candidates:
            region = max(candidates, key=lambda found: (len(found.removed), _macs_saved(found, shapes)))
            regions.append(region)
            removed.update(region.removed)
            sources.add(region.source)
        elif reasons and (target.target not in CONVOLUTIONS or target in obstacles):
            refusals.append(refuse(target, reasons[0]))
    return regions[::-1], refusals[::-1]


def _operators(graph: fx.Graph, tensors: Mapping[str, Tensor]) -> tuple[dict[fx.Node, Operators], dict[fx.Node, str]]:
    """The operators of every feature map, and why a node of the vocabulary has none but the identity."""
    operators: dict[fx.Node, Operators] = {}
    obstacles: dict[fx.Node, str] = {}
    for node in graph.nodes:
        value = node.meta.get("val")
        if node.op == "get_attr" or not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        if value.dim() < 2 or not isinstance(value.shape[1], int):  # the channels may depend on the size
            continue
        found = _RULES[node.target](node, operators, tensors) if node.target in _RULES else {}
        if isinstance(found, str):
            obstacles[node] = found
            found = {}
        operators[node] = {**found, node: kernels.identity(value.shape[1], value.dim() - 2)}
    return operators, obstacles


def _convolution(
    node: fx.Node, operators: Mapping[fx.Node, Operators], tensors: Mapping[str, Tensor]
) -> Operators | str:
    named = arguments(node)
    constants = _constants([named["weight"], named["bias"]], tensors)
    if constants is None:
        return "its weight is computed in the graph, not a parameter"
    weight, bias = constants
    rank = weight.dim() - 2
    source = named["input"]
    if source.meta["val"].dim() != rank + 2:
        return "its input has no batch dimension"
    stride, dilation = _axes(named["stride"], rank), _axes(named["dilation"], rank)
    if named["padding"] == "same":
        total = [step * (size - 1) for step, size in zip(dilation, weight.shape[2:], strict=True)]
        pad_lo = tuple(n // 2 for n in total)
        pad_hi = tuple(n - n // 2 for n in total)
    else:
        pad_lo = pad_hi = (0,) * rank if named["padding"] == "valid" else _axes(named["padding"], rank)
    operator = kernels.from_conv(
        weight, bias, stride=stride, pad_lo=pad_lo, pad_hi=pad_hi, dilation=dilation, groups=named["groups"]
    )
    return {source: operator}


def _batch_norm(
    node: fx.Node, operators: Mapping[fx.Node, Operators], tensors: Mapping[str, Tensor]
) -> Operators | str:
    named = arguments(node)
    if named["training"]:
        return "it normalises with the statistics of each batch (track_running_stats=False), which is not linear"
    constants = _constants([named[name] for name in ("weight", "bias", "running_mean", "running_var")], tensors)
    if constants is None:
        return "its weights or statistics are computed in the graph, not parameters and buffers"
    scale, shift = kernels.batch_norm_rows(*constants, eps=named["eps"])
    upstream = operators[named["input"]]
    return {source: kernels.scale_rows(operator, scale, shift) for source, operator in upstream.items()}


def _sum(node: fx.Node, operators: Mapping[fx.Node, Operators], tensors: Mapping[str, Tensor]) -> Operators | str:
    named = arguments(node)
    a, b = named["self"], named["other"]
    if a not in operators or b not in operators:
        return "it adds something that is not a feature map"
    if named["alpha"] != 1:
        return f"it adds {named['alpha']} times its second operand"
    shared = [source for source in operators[a] if source in operators[b]]
    if not shared:
        starts = " and ".join(next(iter(operators[branch])).name for branch in (a, b))
        return f"its branches start from different tensors, {starts}"
    found: Operators = {}
    obstacle = None
    for source in shared:
        obstacle = kernels.sum_obstacle(operators[a][source], operators[b][source])
        if obstacle is None:
            found[source] = kernels.add(operators[a][source], operators[b][source])
    return found or obstacle


_Rule = Callable[[fx.Node, Mapping[fx.Node, Operators], Mapping[str, Tensor]], Operators | str]
_RULES: dict[object, _Rule] = {
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    BATCH_NORM: _batch_norm,
    ADD: _sum,
}


def _region(
    source: fx.Node,
    target: fx.Node,
    operators: Mapping[fx.Node, Operators],
    order: Mapping[fx.Node, int],
    already_removed: set[fx.Node],
    sources: set[fx.Node],
) -> Region:
    members = {target}
    pending = [target]
    while pending:
        for node in pending.pop().all_input_nodes:
            if node is not source and node not in members and source in operators.get(node, ()):
                members.add(node)
                pending.append(node)
    body = tuple(sorted(members, key=order.__getitem__))
    removed = {target}
    for node in reversed(body):
        # the source of a region already chosen stays in use, whatever becomes of its users
        if node not in sources and all(user in removed or user in already_removed for user in node.users):
            removed.add(node)
    return Region(source, target, operators[target][source], body, tuple(n for n in body if n in removed))


def _not_worthwhile(region: Region, shapes: Shapes) -> str | None:
    """Why folding the region would gain nothing, or None if it would."""
    convolutions = [node for node in region.body if node.target in CONVOLUTIONS]
    if not convolutions:
        return "there is no convolution before it to fold it into"
    staying = [node for node in convolutions if node not in region.removed]
    if len(staying) == len(convolutions):
        return f"the convolution {staying[0].name} is needed elsewhere too, so it would be computed twice"
    if len(region.removed) < 2:
        return "it is a single convolution already"
    if _macs_saved(region, shapes) < 0:
        why = f", since {staying[0].name} is needed elsewhere too" if staying else ""
        fused = _fused_macs(region, shapes)
        return (
            f"one convolution would cost {fused:,} multiply-accumulates and replace "
            f"{fused + _macs_saved(region, shapes):,}{why}"
        )
    return None


def _fused_macs(region: Region, shapes: Shapes) -> int:
    return kernels.conv_shape(region.operator).macs_per_position * positions(shapes[region.target])


def _macs_saved(region: Region, shapes: Shapes) -> int:
    return sum(multiply_accumulates(node, shapes) for node in region.removed) - _fused_macs(region, shapes)


def _constants(nodes: list[fx.Node | None], tensors: Mapping[str, Tensor]) -> list[Tensor | None] | None:
    """The tensors that `nodes` stand for (None for an absent one), or None if one of them is computed."""
    if any(node is not None and node.op != "get_attr" for node in nodes):
        return None
    return [None if node is None else tensors[node.target] for node in nodes]


def _axes(value: object, rank: int) -> tuple[int, ...]:
    """A stride, padding or dilation as one number for each axis; ATen takes one number for all."""
    numbers = list(value) if isinstance(value, (list, tuple)) else [value]
    return tuple(numbers * rank if len(numbers) == 1 else numbers)
