"""Compute ahead what a network computes of its weights alone, such as standardised weights."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node


def compute_constants(module: "GraphModule") -> bool:
    """Write what depends on stored tensors alone as stored tensors and numbers, in place; whether there was any.

    Runtimes want the weight of a layer stored. What makes a weight of integers a float one again stays: they read it.

    Args:
        module: of ATen operators, in evaluation mode.
    """
    import torch
    from torch import fx

    from repnets.fusion.graph import tensor_at

    values: dict[fx.Node, object] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr" and isinstance(node.meta.get("val"), torch.Tensor):
            values[node] = tensor_at(module, node.target)
        elif _is_computed_ahead(node) and all(one in values for one in node.all_input_nodes):
            args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
            with torch.no_grad():
                values[node] = node.target(*args, **kwargs)
    made = [node for node in values if node.op != "get_attr" and not values.keys() >= node.users.keys()]
    for node in made:
        value = values[node]
        if isinstance(value, torch.Tensor):
            name = f"constant_{node.name}"
            module.register_buffer(name, value.detach().clone())
            with module.graph.inserting_before(node):
                stored = module.graph.get_attr(name)
            stored.meta = dict(node.meta)
        else:  # a number
            stored = value
        new = {node: stored}
        for user in [one for one in node.users if one not in values]:
            user.args, user.kwargs = fx.map_arg((user.args, user.kwargs), lambda one, new=new: new.get(one, one))
    module.graph.eliminate_dead_code()
    module.recompile()
    return bool(made)


def _is_computed_ahead(node: "Node") -> bool:
    from repnets.fusion.graph import is_repeatable

    is_plain = getattr(node.target, "namespace", "aten") == "aten"  # `getitem` has none
    return node.op == "call_function" and bool(node.all_input_nodes) and is_plain and is_repeatable(node)
