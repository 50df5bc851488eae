"""Graphs within a captured graph: blocks such as `with torch.no_grad():`, which the exporter keeps as calls."""

from operator import attrgetter

import torch
from torch import fx

from repnets.errors import RepnetsError

_NO_GRADIENTS = torch._higher_order_ops.wrap.wrap_with_set_grad_enabled
_AUTOCAST = torch._higher_order_ops.wrap.wrap_with_autocast
_CHECKPOINT = torch.ops.higher_order.tag_activation_checkpoint


def inline_blocks(module: fx.GraphModule) -> None:
    """Write the calls of blocks that change no number in the graph itself, in place.

    Those are `torch.no_grad()`, `torch.enable_grad()`, `torch.autocast(..., enabled=False)`, autocast for another
    device than the CPU, and activation checkpoints, also one in another. A graph that is run under a condition, as
    by `torch.cond`, is left: it is one call, which reads what its branches read.

    Raises:
        RepnetsError: A block switches autocast on.
    """
    graph = module.graph
    for node in list(graph.nodes):
        block = _block(node)
        if block is None:
            continue
        getter, operands = block
        inner = attrgetter(getter.target)(module)
        inline_blocks(inner)
        values = dict(zip((one for one in inner.graph.nodes if one.op == "placeholder"), operands, strict=True))
        with graph.inserting_before(node):
            for one in inner.graph.nodes:
                if one.op == "output":
                    results = one.args[0]
                elif one.op != "placeholder":
                    values[one] = graph.node_copy(one, values.__getitem__)
                    if one.op == "get_attr":
                        values[one].target = f"{getter.target}.{one.target}"
        _replace(node, fx.map_arg(results, values.__getitem__))
        graph.erase_node(node)
        if not getter.users:
            graph.erase_node(getter)


def _block(node: fx.Node) -> tuple[fx.Node, tuple] | None:
    """The node of the graph that a block runs and what it is run on; None of any other node."""
    if node.target is _NO_GRADIENTS:
        _, getter, *operands = node.args
    elif node.target is _AUTOCAST:
        device, dtype, enabled, _, getter, *operands = node.args
        if enabled and device == "cpu":
            kind = str(dtype).removeprefix("torch.")
            raise RepnetsError(
                f"The model's forward switches autocast on (wrap_with_autocast, {kind}), under which each layer rounds "
                "its weights as it runs, so no two layers are one. Remove the block, or set enabled=False, and give "
                "the exported file the precision."
            )
    elif node.target is _CHECKPOINT:
        getter, *operands = node.args
    else:
        return None
    return getter, tuple(operands)


def _replace(node: fx.Node, results: object) -> None:
    """Let what reads a call's results read `results`, one node or a sequence of them."""
    if isinstance(results, fx.Node):
        node.replace_all_uses_with(results)
        return
    for item in list(node.users):
        result = results[item.args[1]]
        item.replace_all_uses_with(result)
        node.graph.erase_node(item)
