"""Which parts of a captured graph become one convolution, and why the others stay as they are.

Nonlinearities cut the graph into linear pieces, and each piece is settled by itself. A plan says how every
node of the piece that is still computed is computed: by its own call, or by one convolution of a node further
upstream. The piece's outputs must be computed, and so must whatever the plan for them reads; the rest is
gone. So a node that two branches share counts once, and one that is needed elsewhere too is never free. The cheapest
plan is found in `repnets.fusion.search`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from repnets.fusion.affine_conv import AffineConv
from repnets.fusion.constants import Constants
from repnets.fusion.cost_model import Cost, Shapes, work_of_node, works_of_operator, works_of_scale
from repnets.fusion.graph import LAYERS, SPLITS, module_path, multiply_accumulates
from repnets.fusion.operators import Analysis
from repnets.fusion.rules import CHANNELWISE, RULES
from repnets.fusion.search import Way, cheapest


@dataclass(frozen=True, eq=False)
class Region:
    """A part of the graph that one convolution takes the place of.

    Attributes:
        source: The node whose output the region reads.
        target: The node whose output the region makes.
        operator: The target as a function of the source.
        body: All nodes between the two, in the order of the graph, target last.
        removed: Those of the body that the fused graph does without, target last.
        is_scale: Whether it becomes a factor and a term for each channel, and no layer.
    """

    source: fx.Node
    target: fx.Node
    operator: AffineConv
    body: tuple[fx.Node, ...]
    removed: tuple[fx.Node, ...]
    is_scale: bool


@dataclass(frozen=True)
class Refusal:
    """A call of the engine's vocabulary that stays as it is.

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


def find_regions(graph: fx.Graph, analysis: Analysis, shapes: Shapes, cost: Cost) -> tuple[list[Region], list[Refusal]]:
    """The regions worth folding and the refused candidates, both in the order of the graph.

    Args:
        graph: A captured graph with its batch norms flattened.
        analysis: Its operators.
        shapes: Shape of each node's tensor at the example size, by which costs are weighed.
        cost: Of a call's work.
    """
    order = {node: place for place, node in enumerate(graph.nodes)}
    unread = _unread(graph, analysis.constants)
    plan: dict[fx.Node, Way] = {}
    for piece in _pieces(graph, analysis, order):
        ways = _ways(piece, analysis, shapes, cost)
        outputs = [node for node in piece if any(user not in ways for user in _readers(node, unread))]
        plan |= cheapest(ways, outputs)
    folded = {node: way for node, way in plan.items() if way.operator is not None}
    regions = _regions(folded, {*plan, *(way.reads[0] for way in folded.values())}, order)
    left = [node for node in analysis.operators if node.target in RULES and node not in folded]
    gone = {node for region in regions for node in region.removed}
    reasons = {node: _reason(node, analysis, shapes, order, unread) for node in left if node not in gone}
    return regions, [refuse(node, reason) for node, reason in reasons.items() if reason is not None]


# Linear pieces


def _pieces(graph: fx.Graph, analysis: Analysis, order: Mapping[fx.Node, int]) -> list[list[fx.Node]]:
    """Nodes that are operators of others, joined with those they are operators of, in the order of the graph.

    A frame that is not yet written whole belongs to what is made of it.
    """
    piece_of: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        if not analysis.upstream(node) and node not in analysis.frames:
            continue
        piece = piece_of[node] = [node]
        for before in _reads(node, analysis.constants):
            other = piece_of.get(before, piece)
            if other is not piece:
                if len(other) > len(piece):
                    piece, other = other, piece
                piece.extend(other)
                piece_of.update(dict.fromkeys(other, piece))
    return [sorted(piece, key=order.__getitem__) for piece in {id(one): one for one in piece_of.values()}.values()]


def _reads(node: fx.Node, constants: Constants) -> list[fx.Node]:
    """The feature maps a call reads: past splits, and past constants that take their size from one."""
    found: dict[fx.Node, None] = {}
    pending = list(node.all_input_nodes)
    while pending:
        one = pending.pop()
        if one.target in SPLITS or one in constants:
            pending.extend(one.all_input_nodes)
        elif isinstance(one.meta.get("val"), Tensor):
            found[one] = None
    return list(found)


def _readers(node: fx.Node, unread: set[fx.Node]) -> list[fx.Node]:
    """The calls that compute with a node's values."""
    users = [user for one in node.users for user in (one.users if one.target in SPLITS else [one])]
    return [user for user in users if user not in unread]


def _unread(graph: fx.Graph, constants: Constants) -> set[fx.Node]:
    """Nodes whose values matter to no output, though something may ask for their size."""
    unread: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        is_number = isinstance(node.meta.get("val"), (int, torch.SymInt))
        if is_number or node in constants or (node.users and all(user in unread for user in node.users)):
            unread.add(node)
    return unread


# Ways to compute a node


def _ways(piece: Sequence[fx.Node], analysis: Analysis, shapes: Shapes, cost: Cost) -> dict[fx.Node, list[Way]]:
    """All ways to compute each node of a piece, its own call first.

    A convolution is a way only where there was one: it is no gain to make one of a batch norm and a sum. What treats
    each channel by itself is one factor and one term for each, without one.
    """
    ways: dict[fx.Node, list[Way]] = {}
    below_a_layer: dict[fx.Node, set[fx.Node]] = {}  # nodes with a layer between them and the node
    for node in piece:
        reads = tuple(_reads(node, analysis.constants))
        upstream = analysis.upstream(node)
        below_a_layer[node] = set().union(*(below_a_layer.get(read, ()) for read in reads))
        if node.target in LAYERS:
            below_a_layer[node].update(reads, *(dict(analysis.upstream(read)) for read in reads))
        constants = _cost_of_constants(node, analysis.constants, shapes, cost)
        own = cost(work_of_node(node, shapes)) + constants
        ways[node] = [Way(None, reads, own, int(node.target in LAYERS))]
        for source, op in reversed(upstream):  # of two equally cheap ones the nearer is taken
            if source in below_a_layer[node]:
                if _is_one_module(op, source, node):
                    price = sum(map(cost, works_of_operator(op, source, node, shapes)))
                    if op.pooled:  # it is a mean and a layer again: worth it only where a layer before them goes
                        price = max(price, _cost_of_mean_and_layer(node, source, ways, analysis))
                    ways[node].append(Way(op, (source,), price, 1))
            elif (
                op.is_channelwise and _is_one_module(op, source, node) and len(op.stride) == node.meta["val"].dim() - 2
            ):
                # exporters compute the constants: not to need them is no reason to make one call two
                ways[node].append(Way(op, (source,), sum(map(cost, works_of_scale(op, node, shapes)), constants), 0))
    return ways


def _is_one_module(op: AffineConv, source: fx.Node, target: fx.Node) -> bool:
    """Whether one module makes the target: what computes tokens leaves them in the groups that they come in."""
    if op.stride or op.pooled:
        return True
    return str(source.meta["val"].shape[:-1]) == str(target.meta["val"].shape[:-1])


def _cost_of_mean_and_layer(
    node: fx.Node, source: fx.Node, ways: Mapping[fx.Node, Sequence[Way]], analysis: Analysis
) -> float:
    """The cost of a layer's own call and of those that make its input of a map's mean over the image."""
    own = ways[node][0]
    pooled = [one for one in own.reads if one in ways and _is_pooled(one, source, analysis)]
    return own.cost + sum(_cost_of_mean_and_layer(one, source, ways, analysis) for one in pooled)


def _is_pooled(node: fx.Node, source: fx.Node, analysis: Analysis) -> bool:
    op = dict(analysis.upstream(node)).get(source)
    return op is not None and op.pooled


def _cost_of_constants(node: fx.Node, constants: Constants, shapes: Shapes, cost: Cost) -> float:
    """The cost of the constants that are computed for a node."""
    computed = [one for one in constants.behind(node) if one.op == "call_function" and one in shapes]
    return sum(cost(work_of_node(one, shapes)) for one in computed)


# Accounts


def _regions(folded: Mapping[fx.Node, Way], computed: set[fx.Node], order: Mapping[fx.Node, int]) -> list[Region]:
    regions = []
    claimed: set[fx.Node] = set()
    for target in sorted(folded, key=order.__getitem__):
        (source,) = folded[target].reads
        body = _between(source, target, order)
        removed = tuple(one for one in body if one is target or (one not in computed and one not in claimed))
        claimed.update(removed)
        regions.append(Region(source, target, folded[target].operator, body, removed, not folded[target].layers))
    return regions


def _between(source: fx.Node, target: fx.Node, order: Mapping[fx.Node, int]) -> tuple[fx.Node, ...]:
    """The calls on the ways from source to target, target last, in the order of the graph."""
    upstream = {target}
    pending = [target]
    while pending:
        for node in pending.pop().all_input_nodes:
            if node not in upstream and order[node] > order[source]:
                upstream.add(node)
                pending.append(node)
    body: dict[fx.Node, None] = {}
    for node in sorted(upstream, key=order.__getitem__):
        is_number = isinstance(node.meta.get("val"), (int, torch.SymInt))
        if not is_number and any(one is source or one in body for one in node.all_input_nodes):
            body[node] = None
    return tuple(body)


def _reason(
    node: fx.Node, analysis: Analysis, shapes: Shapes, order: Mapping[fx.Node, int], unread: set[fx.Node]
) -> str | None:
    """Why a node that is left was not folded; None where nobody would expect it to be."""
    if node in analysis.obstacles:
        return analysis.obstacles[node]
    if node.target not in CHANNELWISE:
        return None
    upstream = dict(analysis.upstream(node))
    ways = ((source, _between(source, node, order)) for source in reversed(upstream))
    source, way = next((pair for pair in ways if any(step.target in LAYERS for step in pair[1])), (None, ()))
    if source is None:
        after = next((analysis.obstacles[user] for user in node.users if user in analysis.obstacles), None)
        return "there is no convolution before it to fold it into" + (
            f"; of the one after it: {after}" if after else ""
        )
    replaced = {node}
    for step in reversed(way):
        if all(user in replaced for user in _readers(step, unread)):
            replaced.add(step)
    layers = [step for step in way if step.target in LAYERS]
    staying = [step for step in layers if step not in replaced]
    if len(staying) == len(layers):
        return f"the convolution {staying[0].name} is needed elsewhere too, so it would be computed twice"
    macs = sum(work.macs for work in works_of_operator(upstream[source], source, node, shapes))
    before = sum(multiply_accumulates(step, shapes) for step in replaced)
    why = f", since {staying[0].name} is needed elsewhere too" if staying else ""
    return f"one convolution would cost {macs:,} multiply-accumulates and replace {before:,}{why}"
