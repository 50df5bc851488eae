"""Calls that overwrite a tensor: where they need not, the graph is captured sooner."""

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from repnets.fusion.trial import difference

_aten = torch.ops.aten
_FUNCTIONAL = {
    getattr(getattr(_aten, f"{name}_"), overload): getattr(getattr(_aten, name), overload)
    for overload, names in {
        "default": "clamp copy elu hardsigmoid hardswish hardtanh index_put leaky_relu neg relu sigmoid silu tanh zero",
        "Tensor": "add div fill mul sub",
        "Scalar": "fill masked_fill",
    }.items()
    for name in names.split()
}
_OF_ITS_DTYPE = {_aten.copy.default, _aten.fill.Scalar, _aten.fill.Tensor, _aten.index_put.default, _aten.zero.default}
_FRESH = {  # made of other operators, as no schema says: their result shares no memory with what they read
    *(_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default, _aten.linear.default),
    *(_aten.conv1d.padding, _aten.conv2d.padding, _aten.conv3d.padding, _aten.batch_norm.default),
    *(_aten.conv_transpose1d.default, _aten.conv_transpose2d.input, _aten.conv_transpose3d.input),
    *(_aten.max_pool1d.default, _aten.max_pool2d.default, _aten.max_pool3d.default),
}
_WHOLE = {  # what makes a tensor of a new value of one part, as the part was taken from it
    _aten.slice.Tensor: lambda whole, part, *place: (_aten.slice_scatter.default, (whole, part, *place)),
    _aten.select.int: lambda whole, part, *place: (_aten.select_scatter.default, (whole, part, *place)),
    _aten.transpose.int: lambda _, part, *axes: (_aten.transpose.int, (part, *axes)),
}


def write_elsewhere(program: ExportedProgram) -> None:
    """Let calls that overwrite a tensor make one of their own, which the calls after them read, in place.

    What is read later and shares the memory is made anew too, if it is the tensor that a slice, a row or a transposed
    one was taken from. All else is left: `run_decompositions` makes any program functional, and traces it anew.
    """
    place = {node: number for number, node in enumerate(program.graph.nodes)}
    owned = program.graph_signature.user_inputs
    for node in list(place):
        if node.target not in _FUNCTIONAL or not _keeps_dtype(node):
            continue
        before = _sharing_memory(node.args[0], lambda one, now=place[node]: place[one] < now)
        if not all(_is_call(one) or one.name in owned for one in before):
            continue
        read = {one for one in before if any(place[user] > place[node] for user in one.users)}
        taken_from = _taken_from(node.args[0])
        if read <= set(taken_from):
            node.target = _FUNCTIONAL[node.target]
            needed = [number for number, one in enumerate(taken_from) if one in read]
            _read_instead(node, taken_from[: max(needed, default=0) + 1], place)
    (results,) = program.graph.output_node().args
    for spec, result in zip(program.graph_signature.output_specs, results, strict=True):
        if isinstance(result, fx.Node):
            spec.arg.name = result.name


def _read_instead(value: fx.Node, wholes: Sequence[fx.Node], place: dict[fx.Node, int]) -> None:
    """Let all later calls read a new value in place of the first node, and what it makes of the nodes after it.

    Args:
        value: Of the first node.
        wholes: Each is a part of the next.
        place: Of each node in the graph; those made here get that of `value`.
    """
    now, part = place[value], None
    for whole in wholes:
        if part is not None:
            with whole.graph.inserting_after(value):
                value = whole.graph.call_function(*_WHOLE[part.target](whole, value, *part.args[1:]))
            value.meta, place[value] = dict(whole.meta), now
        later = {user for user in whole.users if place[user] > now}
        whole.replace_all_uses_with(value, delete_user_cb=later.__contains__)
        part = whole


def _taken_from(node: fx.Node) -> list[fx.Node]:
    """A node, what it is a slice, a row or the transposed of, and so on."""
    found = [node]
    while found[-1].target in _WHOLE:
        found.append(found[-1].args[0])
    return found


def _sharing_memory(node: fx.Node, among: Callable[[fx.Node], bool]) -> set[fx.Node]:
    """The nodes that may share memory with this one, itself too."""
    found, waiting = set(), [node]
    while waiting:
        one = waiting.pop()
        found.add(one)
        read = [] if one.op == "placeholder" or _is_fresh(one) else one.all_input_nodes
        made = [user for user in one.users if among(user) and not _is_fresh(user)]
        waiting += {*read, *made} - found
    return {one for one in found if _holds_tensors(one)}


def _is_call(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) or node.target is operator.getitem


def _holds_tensors(node: fx.Node) -> bool:
    """Of a node of unknown value, too."""
    return any(isinstance(value, Tensor) for value in tree_leaves(node.meta.get("val", torch.empty(0))))


def _is_fresh(node: fx.Node) -> bool:
    """Whether what a call gives shares no memory with anything that it reads."""
    if not _holds_tensors(node):
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    schema = node.target._schema
    if any(one.alias_info is not None for one in (*schema.arguments, *schema.returns)):
        return False
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(node.target.name(), "CompositeImplicitAutograd")
    return node.target in _FRESH or not composite


def _keeps_dtype(write: fx.Node) -> bool:
    """Whether a call gives the dtype of what it overwrites also where it makes a tensor of its own."""
    if _FUNCTIONAL[write.target] in _OF_ITS_DTYPE:
        return True
    values = [node.meta.get("val") for node in write.all_input_nodes]
    dtype = write.meta["val"].dtype
    return dtype.is_floating_point and all(
        isinstance(value, Tensor) and value.dtype in (dtype, torch.bool) for value in values
    )


@contextmanager
def without_overwriting(model: nn.Module, inputs: Sequence[Tensor]) -> Iterator[None]:
    """The model with `inplace` switched off, where that changes no result.

    Calls that write in place cost a second, longer trace of the graph.

    Args:
        model: On the CPU; as it was, afterwards.
        inputs: It is tried on them.
    """
    layers = [module for module in model.modules() if getattr(module, "inplace", False) is True]
    if not layers:
        yield
        return
    before = model(*map(torch.clone, inputs))
    try:
        _set_inplace(layers, False)
        if _overwritten_is_read(model, layers, inputs, before):
            _set_inplace(layers, True)
        yield
    finally:
        _set_inplace(layers, True)


def _set_inplace(layers: Sequence[nn.Module], on: bool) -> None:
    for layer in layers:
        layer.inplace = on


def _overwritten_is_read(
    model: nn.Module, layers: Sequence[nn.Module], inputs: Sequence[Tensor], before: object
) -> bool:
    """Whether anything reads what the layers would overwrite: it is made NaN behind each of them, and shows up.

    Args:
        model: With `inplace` switched off.
        layers: Those that had it on.
        inputs: Of the model.
        before: What it gave with `inplace` on.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    unsafe = False

    def spoil(_: nn.Module, args: tuple, result: object) -> None:
        nonlocal unsafe
        x = args[0] if args else None
        if not isinstance(x, Tensor) or not isinstance(result, Tensor):
            unsafe = True
        elif x.untyped_storage().data_ptr() != result.untyped_storage().data_ptr():
            if not x.is_floating_point() or x.untyped_storage().data_ptr() in own:
                unsafe = True
            else:
                with suppress(RuntimeError):  # one number seen at many places: the layer could not write there either
                    x.fill_(torch.nan)

    hooks = [layer.register_forward_hook(spoil) for layer in layers]
    try:
        after = model(*map(torch.clone, inputs))
    finally:
        for hook in hooks:
            hook.remove()
    return unsafe or difference(after, before) != 0
