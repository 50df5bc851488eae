"""Calls that overwrite a tensor: where they need not, the graph is captured sooner."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from repnets.fusion.trial import difference

_aten = torch.ops.aten
_FUNCTIONAL = {
    getattr(getattr(_aten, f"{name}_"), overload): getattr(getattr(_aten, name), overload)
    for overload, names in {
        "default": "clamp elu hardsigmoid hardswish hardtanh leaky_relu neg relu sigmoid silu tanh",
        "Tensor": "add div mul sub",
        "Scalar": "masked_fill",
    }.items()
    for name in names.split()
}
_FRESH = {  # made of other operators, as no schema says: their result shares no memory with what they read
    *(_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default, _aten.linear.default),
    *(_aten.conv1d.padding, _aten.conv2d.padding, _aten.conv3d.padding, _aten.batch_norm.default),
    *(_aten.max_pool1d.default, _aten.max_pool2d.default, _aten.max_pool3d.default),
}


def write_elsewhere(program: ExportedProgram) -> None:
    """Let calls that overwrite a tensor make one of their own, which the calls after them read, in place.

    A tensor that shares its memory, as a view does, is left. A program without writes is functional as it is:
    `run_decompositions`, which makes any program so, traces it anew.
    """
    place = {node: number for number, node in enumerate(program.graph.nodes)}
    for node in program.graph.nodes:
        if node.target not in _FUNCTIONAL or not _keeps_dtype(node):
            continue
        written = node.args[0]
        earlier = [user for user in written.users if place[user] < place[node]]
        later = [user for user in written.users if place[user] > place[node]]
        # the program's signature names its outputs
        if all(map(_is_fresh, (written, *earlier))) and all(user.op != "output" for user in later):
            node.target = _FUNCTIONAL[node.target]
            written.replace_all_uses_with(node, delete_user_cb=later.__contains__)


def _is_fresh(node: fx.Node) -> bool:
    """Whether what a call gives shares no memory with anything that it reads."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    schema = node.target._schema
    if any(one.alias_info is not None for one in (*schema.arguments, *schema.returns)):
        return False
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(node.target.name(), "CompositeImplicitAutograd")
    return node.target in _FRESH or not composite


def _keeps_dtype(write: fx.Node) -> bool:
    """Whether a call gives the dtype of what it overwrites also where it makes a tensor of its own."""
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
