"""Convolutions, matrix products and attention."""

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def around(
    pad_type: str,
    pad: Sequence[int] | None,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
) -> list[tuple[int, int]]:
    """What is padded before and after each spatial dimension.

    ``same`` gives an output of ceil(size / stride) and puts the odd one behind, ``same_lower`` before.

    Args:
        pad_type: ``valid``, ``custom``, ``same`` or ``same_lower``.
        pad: before and after each dimension, for ``custom`` alone.
        sizes, kernel, strides: of each dimension; the kernel with its dilation.
    """
    if pad_type == "valid":
        return [(0, 0)] * len(sizes)
    if pad_type == "custom":
        pad = pad or [0] * 2 * len(sizes)
        return list(zip(pad[::2], pad[1::2], strict=True))
    found = []
    for size, reach, stride in zip(sizes, kernel, strides, strict=True):
        total = max(0, (ceil(size / stride) - 1) * stride + reach - size)
        less, more = total // 2, total - total // 2
        found.append({"same": (less, more), "same_lower": (more, less)}[pad_type])
    return found


def flat(pads: Sequence[tuple[int, int]]) -> list[int]:
    """As torch's own pad takes them: the last dimension first."""
    return [amount for pair in reversed(pads) for amount in pair]


def _conv(
    x: "Tensor",
    weight: "Tensor",
    bias: "Tensor | None" = None,
    strides: list[int] | None = None,
    pad_type: str = "valid",
    pad: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
) -> "Tensor":
    from torch.nn import functional

    dims = x.dim() - 2
    strides, dilations = strides or [1] * dims, dilations or [1] * dims
    reach = [(size - 1) * step + 1 for size, step in zip(weight.shape[2:], dilations, strict=True)]
    pads = around(pad_type, pad, x.shape[2:], reach, strides)
    if all(before == after for before, after in pads):
        padding = [before for before, _ in pads]
    else:
        x, padding = functional.pad(x, flat(pads)), 0
    convolve = getattr(functional, f"conv{dims}d")
    return convolve(x, weight, bias, strides, padding, dilations, groups)


def _conv_transpose(
    x: "Tensor",
    weight: "Tensor",
    bias: "Tensor | None" = None,
    pad: list[int] | None = None,
    output_shape: list[int] | None = None,
    pad_type: str = "valid",
    strides: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
) -> "Tensor":
    from torch.nn import functional

    dims = x.dim() - 2
    strides, dilations = strides or [1] * dims, dilations or [1] * dims
    convolve = getattr(functional, f"conv_transpose{dims}d")
    whole = convolve(x, weight, None, strides, 0, 0, groups, dilations)
    pads = []
    for index, (size, full, stride) in enumerate(zip(x.shape[2:], whole.shape[2:], strides, strict=True)):
        if pad_type == "same":
            before, wanted = max(0, full - size * stride) // 2, size * stride
        else:
            before, after = {"valid": (0, 0), "custom": (pad or [0] * 2 * dims)[2 * index : 2 * index + 2]}[pad_type]
            wanted = full - before - after
        wanted = output_shape[2 + index] if output_shape else wanted
        pads.append((-before, wanted + before - full))
    whole = functional.pad(whole, flat(pads))  # cuts off where negative; beyond the kernel's reach stands the bias
    return whole if bias is None else whole + bias.reshape(-1, *[1] * dims)


def _linear(x: "Tensor", weight: "Tensor", bias: "Tensor | None" = None) -> "Tensor":
    from torch.nn import functional

    return functional.linear(x, weight, bias)


def _matmul(x: "Tensor", y: "Tensor", transpose_x: bool = False, transpose_y: bool = False) -> "Tensor":
    x = x.mT if transpose_x and x.dim() > 1 else x
    return x @ (y.mT if transpose_y and y.dim() > 1 else y)


def _einsum(values: "list[Tensor]", equation: str) -> "Tensor":
    import torch

    return torch.einsum(equation, *values)


def _attention(query: "Tensor", key: "Tensor", value: "Tensor", attn_mask: "Tensor | None" = None) -> "Tensor":
    from torch.nn import functional

    return functional.scaled_dot_product_attention(query, key, value, attn_mask)


OPERATIONS = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "einsum": _einsum,
    "linear": _linear,
    "matmul": _matmul,
    "scaled_dot_product_attention": _attention,
}
