"""Pooling over windows."""

from math import prod
from typing import TYPE_CHECKING

from pipeline.backends.coreml.operations.products import around, flat

if TYPE_CHECKING:
    from torch import Tensor


def _padded(
    x: "Tensor",
    kernel_sizes: list[int],
    strides: list[int],
    pad_type: str,
    pad: list[int] | None,
    beyond: float,
) -> "tuple[Tensor, int | list[int]]":
    """The input and what is left for torch to pad: torch pads both sides alike, by half a kernel at most."""
    from torch.nn import functional

    pads = around(pad_type, pad, x.shape[2:], kernel_sizes, strides)
    fits = all(before == after and 2 * before <= size for (before, after), size in zip(pads, kernel_sizes, strict=True))
    if fits:
        return x, [before for before, _ in pads]
    return functional.pad(x, flat(pads), value=beyond), 0


def _max_pool(
    x: "Tensor",
    kernel_sizes: list[int],
    pad_type: str,
    strides: list[int] | None = None,
    pad: list[int] | None = None,
    ceil_mode: bool = False,
) -> "Tensor":
    from torch.nn import functional

    strides = strides or [1] * len(kernel_sizes)
    x, padding = _padded(x, kernel_sizes, strides, pad_type, pad, float("-inf"))
    pool = getattr(functional, f"max_pool{x.dim() - 2}d")
    return pool(x, kernel_sizes, strides, padding, ceil_mode=ceil_mode)


def _avg_pool(
    x: "Tensor",
    kernel_sizes: list[int],
    pad_type: str,
    strides: list[int] | None = None,
    pad: list[int] | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> "Tensor":
    from torch.nn import functional

    strides = strides or [1] * len(kernel_sizes)
    padded, padding = _padded(x, kernel_sizes, strides, pad_type, pad, 0.0)
    pool = getattr(functional, f"avg_pool{x.dim() - 2}d")
    if padding != 0:
        return pool(padded, kernel_sizes, strides, padding, ceil_mode, not exclude_padding_from_average)
    means = pool(padded, kernel_sizes, strides, 0, ceil_mode)
    if not exclude_padding_from_average:
        return means
    ones, _ = _padded(x.new_ones(1, 1, *x.shape[2:]), kernel_sizes, strides, pad_type, pad, 0.0)
    return means / pool(ones, kernel_sizes, strides, 0, ceil_mode)


def _l2_pool(
    x: "Tensor",
    kernel_sizes: list[int],
    pad_type: str,
    strides: list[int] | None = None,
    pad: list[int] | None = None,
    ceil_mode: bool = False,
) -> "Tensor":
    if ceil_mode:
        raise NotImplementedError("ceil_mode of an l2_pool")
    return (_avg_pool(x * x, kernel_sizes, pad_type, strides, pad) * prod(kernel_sizes)).sqrt()


OPERATIONS = {"avg_pool": _avg_pool, "l2_pool": _l2_pool, "max_pool": _max_pool}
