"""Layers that overwrite their input: where nobody reads it again, they need not, and the graph is captured sooner."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

from repnets.fusion.trial import difference


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
