"""Affine convolutions one after the other: what the border of a feature map allows.

Between two layers a feature map is padded by zeros, or spread by them. One operator does the work of both only where
the first layer, carried on past the ends of its output, gives what was put there.
"""

from dataclasses import replace

import torch
from torch import Tensor

from repnets.fusion import bands
from repnets.fusion.affine_conv import AffineConv
from repnets.fusion.bands import Axes, Band

_SAME = 1e-12  # two float64 numbers that were reached by different sums count as one when this near


def padded(
    op: AffineConv, lo: Axes, hi: Axes, value: Tensor | float = 0.0, *, border: bool = False
) -> AffineConv | str:
    """Y followed by a padding with the constant `value` of each channel, or why that is no such operator.

    Past its ends the operator goes on as it is, so it must come to that constant there by itself, for every
    input size: no tap may reach into X from a position that is padding, and the bias must be the constant.
    A negative number crops, which is always allowed.

    Args:
        op: Y.
        lo: Positions before the first, for each axis.
        hi: Positions after the last.
        value: float64 (out_channels,), or one number for all channels.
        border: Where the bias alone is in the way, make up for it by a border term e.
    """
    grown = replace(
        op,
        pad_lo=tuple(own + s * n for own, s, n in zip(op.pad_lo, op.stride, lo, strict=True)),
        pad_hi=tuple(own + s * n for own, s, n in zip(op.pad_hi, op.stride, hi, strict=True)),
    )
    if all(n <= 0 for n in (*lo, *hi)):
        return grown
    for band in (op.band, op.border):
        if band is not None and _reaches_in(op, band, lo, hi):
            return "its input was padded once already: at the border the inner kernel would see the image, not zeros"
    gap = op.bias - value
    if _is_rounding(gap, op):
        return grown
    if not border:
        return (
            "its padding is not what the layers before it give where their input is zero, so at the border one "
            'kernel would be wrong (border="exact" allows a second one that mends it)'
        )
    inside = _bias_inside(op, value)
    return inside if isinstance(inside, str) else replace(inside, pad_lo=grown.pad_lo, pad_hi=grown.pad_hi)


def spread(op: AffineConv, by: Axes, *, border: bool = False) -> AffineConv | str:
    """Y with `by` - 1 zeros between its positions, or why that is no such operator.

    Args:
        op: Y.
        by: A number for each axis.
        border: Where the bias alone is in the way, make up for it by a border term e.
    """
    if any(s != 1 for s in op.stride):
        return "the layers before it have a stride, and no convolution both leaves out positions and adds some"
    if not _is_rounding(op.bias, op):
        if not border:
            return (
                "it sets zeros between the positions of its input, and what the layers before it give where their "
                'input is zero is not zero (border="exact" allows a second layer that mends it)'
            )
        op = _bias_inside(op, 0.0)
        if isinstance(op, str):
            return op
    return replace(
        op,
        band=bands.spread(op.band, by),
        border=op.border and bands.spread(op.border, by),
        extent=tuple((k - 1) * n + 1 for k, n in zip(op.extent, by, strict=True)),
        pad_lo=tuple(lo * n for lo, n in zip(op.pad_lo, by, strict=True)),
        pad_hi=tuple(hi * n for hi, n in zip(op.pad_hi, by, strict=True)),
        spread=tuple(own * n for own, n in zip(op.spread, by, strict=True)),
        transposed=True,
    )


def compose(outer: AffineConv, inner: AffineConv, *, border: bool = False) -> AffineConv | str:
    """`outer`, a convolution, average pool or crop, after `inner`, or why that is no such operator."""
    if any(n != 1 for n in outer.spread):
        inner = spread(inner, outer.spread, border=border)
    elif any(n != 1 for n in inner.spread) and any(s != 1 for s in outer.stride):
        return "it has a stride, and the transposed convolution before it makes its input larger"
    if isinstance(inner, str):
        return inner
    inner = padded(inner, outer.pad_lo, outer.pad_hi, border=border)
    if isinstance(inner, str):
        return inner
    stride = tuple(s * n for s, n in zip(inner.stride, outer.stride, strict=True))
    return replace(
        inner,
        band=bands.composed(outer.band, inner.band, inner.stride),
        make_bias=lambda: outer.bias + bands.total(outer.band, inner.bias),
        extent=tuple(k + s * (n - 1) for k, s, n in zip(inner.extent, inner.stride, outer.extent, strict=True)),
        stride=stride,
        border=inner.border and bands.composed(outer.band, inner.border, inner.stride),
        transposed=(inner.transposed or outer.transposed) and set(stride) <= {1},
    )


def _bias_inside(op: AffineConv, value: Tensor | float) -> AffineConv | str:
    """The same operator, whose bias is `value` and whose border term makes up for that inside; or why not."""
    # one tap that is inside X exactly where Y's position is inside Y
    tap = tuple(k - 1 - hi for k, hi in zip(op.extent, op.pad_hi, strict=True))
    if not all(lo <= t < lo + s for t, lo, s in zip(tap, op.pad_lo, op.stride, strict=True)):
        return "its padding is not what the layers before it give at the border, and their stride hides where it is"
    gap, shape = op.bias - value, (op.out_channels, 1, *[1] * len(tap))
    inside = bands.moved(bands.grouped(lambda: gap.reshape(shape), op.out_channels, 1, 1, ((0,),) * len(tap)), tap)
    return replace(
        op,
        make_bias=lambda: value + torch.zeros_like(op.bias),
        border=inside if op.border is None else bands.added(op.border, inside),
    )


def _is_rounding(gap: Tensor, op: AffineConv) -> bool:
    """Whether a difference between biases is what is left of two sums that are equal."""
    largest = float(gap.abs().max())
    if largest <= _SAME * float(op.bias.abs().max()):
        return True
    # the weight is made only where the answer may depend on it
    if largest >= _SAME * 1e6:
        return False
    with bands.weights_kept():
        return largest <= _SAME * float(op.band.weight().abs().max())


def _reaches_in(op: AffineConv, band: Band, lo: Axes, hi: Axes) -> bool:
    """Whether a tap sees X from a position that padding by `lo` and `hi` adds, at some input size."""
    return any(
        (n_lo > 0 and taps[-1] >= s + pl) or (n_hi > 0 and pr < k - 1 - taps[0])
        for taps, s, k, pl, pr, n_lo, n_hi in zip(
            band.taps, op.stride, op.extent, op.pad_lo, op.pad_hi, lo, hi, strict=True
        )
    )
