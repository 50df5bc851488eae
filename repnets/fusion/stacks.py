"""Sums and means over tensors that were stacked to be added up."""

from torch import fx

from repnets.fusion.graph import arguments, aten

_TOTALS = {aten.sum.dim_IntList, aten.mean.dim}


def add_up_stacks(graph: fx.Graph) -> None:
    """Write `stack(parts).sum(0)` as the sum of its parts, in place, and a mean as that over their number.

    A sum of branches is what the rules know, and it makes no copy of the branches.
    """
    for node in list(graph.nodes):
        if node.target not in _TOTALS:
            continue
        named = arguments(node)
        stack = named["self"]
        if stack.target is not aten.stack.default or named["keepdim"] or named["dtype"] is not None:
            continue
        parts, axis = stack.args[0], arguments(stack)["dim"] % stack.meta["val"].dim()
        if [one % stack.meta["val"].dim() for one in named["dim"] or ()] != [axis] or len(parts) == 1:
            continue
        with graph.inserting_before(node):
            total = parts[0]
            for part in parts[1:]:
                total = _call(graph, node, aten.add.Tensor, total, part)
            if node.target is aten.mean.dim:
                total = _call(graph, node, aten.div.Tensor, total, len(parts))
        node.replace_all_uses_with(total)
        graph.erase_node(node)
        if not stack.users:
            graph.erase_node(stack)


def _call(graph: fx.Graph, instead: fx.Node, target: object, *args: object) -> fx.Node:
    made = graph.call_function(target, args)
    made.meta = dict(instead.meta)
    return made
