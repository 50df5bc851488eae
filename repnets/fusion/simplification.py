"""Passes that write a captured network's graph as the rules read it."""

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from repnets.fusion.graph import BATCH_NORM, GROUPINGS, WHOLE, arguments, aten, is_repeatable, sizes_at
from repnets.fusion.nested_graphs import inline_blocks

_DROPOUTS = {
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default,
}
_CASTS = {
    *(getattr(aten.to, name) for name in aten.to.overloads()),
    aten._to_copy.default,
    aten.type_as.default,
    aten.alias.default,
    aten.detach.default,
    *_DROPOUTS,
}
_RESHAPES = {  # to the same shape these give the input itself; those that move axes are not among them
    *GROUPINGS,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.expand.default,
    aten.expand_as.default,
}
_TOTALS = {aten.sum.dim_IntList, aten.mean.dim}


def simplify(module: fx.GraphModule) -> None:
    """Write a captured network's graph as the rules read it, in place: no blocks, tuples or calls that do nothing."""
    inline_blocks(module)
    flatten_batch_norms(module.graph)
    drop_whole_slices(module.graph)
    drop_calls_without_effect(module.graph)
    settle_channels(module.graph)


def drop_calls_without_effect(graph: fx.Graph) -> None:
    """Take out the calls that give their input back as it is, such as `x.to(x.dtype)`, and those that nothing reads.

    The exporter asserts the dtype of what is cast; no value depends on it.
    """
    for node in reversed(list(graph.nodes)):
        if node.op != "call_function":
            continue
        if not node.users:
            graph.erase_node(node)
        elif node.target in _CASTS | _RESHAPES and _gives_its_input(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _gives_its_input(node: fx.Node) -> bool:
    before, after = node.args[0].meta["val"], node.meta["val"]
    # shapes as text: to compare two free sizes would tie them
    same = (before.dtype, before.device, str(before.shape)) == (after.dtype, after.device, str(after.shape))
    if node.target in _RESHAPES or not same:
        return same
    named = arguments(node)
    if node.target in _DROPOUTS:
        return not named["train"]
    return not named.get("copy") and named.get("memory_format") in (None, torch.preserve_format)


def flatten_batch_norms(graph: fx.Graph) -> None:
    """Write each batch norm, which the exporter leaves as a tuple and its first item, as one node."""
    exported = (aten._native_batch_norm_legit_no_training.default, aten._native_batch_norm_legit.no_stats)
    for node in list(graph.nodes):
        if node.target not in exported or any(item.args[1] != 0 for item in node.users):
            continue
        named = arguments(node)
        tensors = [named.get(name) for name in ("input", "weight", "bias", "running_mean", "running_var")]
        with graph.inserting_before(node):
            rest = (named.get("training", False), named["momentum"], named["eps"], False)
            flat = graph.create_node("call_function", BATCH_NORM, (*tensors, *rest), name="batch_norm")
        for item in list(node.users):
            flat.meta = dict(item.meta)
            item.replace_all_uses_with(flat)
            graph.erase_node(item)
        graph.erase_node(node)


def drop_whole_slices(graph: fx.Graph) -> None:
    """Take out the slices, and the writes into slices, that span their whole axis, as `x[:, :, 0]` has two."""
    for node in list(graph.nodes):
        if node.target not in (aten.slice.Tensor, aten.slice_scatter.default):
            continue
        named = arguments(node)
        whole = named["end"] is None or (isinstance(named["end"], int) and named["end"] >= WHOLE)
        if (named["start"] or 0, named["step"]) == (0, 1) and whole:
            node.replace_all_uses_with(named["src" if "src" in named else "self"])
            graph.erase_node(node)
    graph.eliminate_dead_code()


def settle_channels(graph: fx.Graph) -> None:
    """Note the channels of feature maps as numbers where they are the same for every input.

    After a pixel unshuffle the exporter has them as c * (h // (h // 2)) * (w // (w // 2)), in place of 4 * c.
    """
    inputs = [node.meta["val"] for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:  # all sizes are fixed
        return
    images = [tuple(_times(size, factor) for size in inputs[0].shape) for factor in (1, 2, 3)]
    sizes = [sizes_at(graph, image) for image in images]
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.dim() > 1 and isinstance(value.shape[1], torch.SymInt):
            channels = {size_of(value.shape[1]) for size_of in sizes}
            if len(channels) == 1:
                node.meta["val"] = value.new_empty((value.shape[0], channels.pop(), *value.shape[2:]))


def _times(size: int | torch.SymInt, factor: int) -> int:
    """A size at capture, `factor` times if it is free."""
    return int(size.node.hint) * factor if isinstance(size, torch.SymInt) else size


def merge_equal_calls(graph: fx.Graph) -> None:
    """Take out each call that another has made before of the same arguments, as of a layer that is called twice.

    Calls that draw random numbers stay.
    """
    made: dict[object, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "get_attr" and not (node.op == "call_function" and is_repeatable(node)):
            continue
        first = made.setdefault((node.target, _frozen(node.args), _frozen(node.kwargs)), node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def _frozen(value: object) -> object:
    """Arguments as a key; of numbers the type counts too."""
    if isinstance(value, Mapping):
        return tuple((name, _frozen(one)) for name, one in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    if isinstance(value, slice):
        return ("slice", _frozen((value.start, value.stop, value.step)))
    return value if isinstance(value, fx.Node) else (type(value), repr(value))


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
