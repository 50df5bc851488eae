"""Layers that overwrite their input: where nobody reads it again, they need not, and the graph is captured sooner."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from repnets.fusion.trial import difference

_aten = torch.ops.aten
_FUNCTIONAL = {
    _aten.add_.Tensor: _aten.add.Tensor,
    _aten.mul_.Tensor: _aten.mul.Tensor,
    _aten.relu_.default: _aten.relu.default,
}
_FRESH = {  # their result shares no memory with what they read
    *(_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default, _aten.linear.default),
    *(_aten.conv1d.padding, _aten.conv2d.padding, _aten.conv3d.padding, _aten.batch_norm.default),
    *(_aten.add.Tensor, _aten.mul.Tensor, _aten.cat.default, _aten.mean.dim),
    *(_aten.relu.default, _aten.silu.default, _aten.sigmoid.default, _aten.hardswish.default, _aten.gelu.default),
    *(_aten.max_pool2d.default, _aten.avg_pool2d.default),
}


def write_elsewhere(program: ExportedProgram) -> None:
    """Let sums, products and ReLUs that overwrite what nobody reads again make a tensor of their own, in place.

    A program without writes is functional as it is: `run_decompositions`, which makes any program so, traces it anew.
    """
    place = {node: number for number, node in enumerate(program.graph.nodes)}
    for node in program.graph.nodes:
        if node.target in _FUNCTIONAL and _is_read_no_more(node, place):
            node.target = _FUNCTIONAL[node.target]


def _is_read_no_more(write: fx.Node, place: Mapping[fx.Node, int]) -> bool:
    """Whether a call overwrites a tensor, or a number in it, that no call after it sees."""
    written, *others = write.args
    values = [one.meta["val"] if isinstance(one, fx.Node) else one for one in (written, *others)]
    if write.kwargs or not all(isinstance(value, Tensor | int | float) for value in values):
        return False
    if len(values) == 2 and torch.result_type(*values) != values[0].dtype:
        return False
    readers = [user for user in written.users if user is not write]
    return (
        written.target in _FRESH
        and written not in others
        and all(user.target in _FRESH and place[user] < place[write] for user in readers)
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
