"""The algebra of affine convolutions: pure functions on float64 tensors.

Every linear branch of a network is, relative to the tensor X it starts from, one operator, per spatial axis

    Y[o, p] = b[o] + sum_{i, t} K[o, i, t] * X0[i, s * p - pl + t] + sum_t e[o, t] * 1_0[s * p - pl + t]

where X0 is X extended by zeros and 1_0 a map of ones of X's size extended by zeros. The output has
floor((H + pl + pr - k) / s) + 1 positions for every input size H. A convolution, a batch norm in eval mode,
an average pool and the identity are such operators with e = 0, and sums and, where the border allows it,
products of them are such operators again (arXiv 2101.03697, section 3.3; arXiv 2103.13425, section 3.2).
What the border allows is `padded`.

A transposed convolution of stride u is such an operator of stride 1 too, when X is first spread: u - 1 zeros are put
between its positions, which makes H of it u * (H - 1) + 1 (arXiv 1603.07285, section 4).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from repnets.fusion import bands
from repnets.fusion.bands import Axes, Band

_SAME = 1e-12  # two float64 numbers that were reached by different sums count as one when this near


@dataclass(frozen=True, eq=False)
class AffineConv:
    """An affine, translation-equivariant map between feature maps of any size.

    Attributes:
        band: K, and for each axis the ascending positions t at which it may differ from zero.
        make_bias: Makes b, float64 (out_channels,).
        in_channels: Channels of X.
        extent: k, the size of the window the taps lie in. It is the alignment of the operator, and may be
            larger than what the taps span.
        stride: s.
        pad_lo: pl, zeros before the first position; negative crops.
        pad_hi: pr, zeros after the last position; negative crops.
        spread: u, the step at which the positions of X are set apart by zeros; where it is not 1 the stride is.
        border: e, a band on one channel of ones, spread as X is; None where it is zero.
        transposed: Made of transposed convolutions, and to be computed by one. Always so where `spread` is not 1.
        pooled: X is first averaged over all its positions; the operator then has no spatial axes.
    """

    band: Band
    make_bias: Callable[[], Tensor]
    in_channels: int
    extent: Axes
    stride: Axes
    pad_lo: Axes
    pad_hi: Axes
    spread: Axes
    border: Band | None = None
    transposed: bool = False
    pooled: bool = False

    @cached_property
    def bias(self) -> Tensor:
        """b, float64 (out_channels,)."""
        return self.make_bias()

    @property
    def out_channels(self) -> int:
        return len(self.band.start)

    @cached_property
    def groups(self) -> int:
        """Blocks of the block-diagonal channel structure, 1 without spatial axes: a linear layer has none."""
        return bands.groups(self.band, self.in_channels) if self.stride else 1

    @property
    def shrinkage(self) -> Axes:
        """k - pl - pr: with the stride, all that the size of the output depends on."""
        return tuple(k - lo - hi for k, lo, hi in zip(self.extent, self.pad_lo, self.pad_hi, strict=True))

    @property
    def is_pointwise(self) -> bool:
        """Each output position depends on the input at the same position alone, and on nothing else."""
        axes = zip(self.extent, self.stride, self.pad_lo, self.pad_hi, self.spread, strict=True)
        return self.border is None and all(axis == (1, 1, 0, 0, 1) for axis in axes)

    @property
    def is_channelwise(self) -> bool:
        """Each output channel is the input channel of its number, times a factor, plus a term."""
        own = torch.arange(self.in_channels)
        return (
            self.is_pointwise
            and not self.pooled
            and self.out_channels == self.in_channels
            and torch.equal(self.band.start, own)
            and torch.equal(self.band.stop, own + 1)
        )


# Single operators


def from_conv(
    weight: Callable[[], Tensor],
    shape: Sequence[int],
    bias: Callable[[], Tensor] | None = None,
    *,
    stride: Axes,
    pad_lo: Axes,
    pad_hi: Axes,
    dilation: Axes,
    groups: int = 1,
) -> AffineConv:
    """The operator of a convolution.

    Args:
        weight: Makes the float64 weight of `shape`.
        shape: (out_channels, in_channels // groups, *kernel size).
        bias: Makes the float64 bias (out_channels,). Default: zeros.
        stride: A number for each axis, as the next three.
        pad_lo: Zeros before the first position.
        pad_hi: Zeros after the last.
        dilation: Step of the taps.
        groups: Blocks of the channels. Default 1.
    """
    out_channels, group_width, *sizes = shape
    taps = tuple(tuple(range(0, size * step, step)) for size, step in zip(sizes, dilation, strict=True))
    return AffineConv(
        band=bands.grouped(weight, out_channels, group_width, groups, taps),
        make_bias=bias or (lambda: torch.zeros(out_channels, dtype=torch.float64)),
        in_channels=group_width * groups,
        extent=tuple((size - 1) * step + 1 for size, step in zip(sizes, dilation, strict=True)),
        stride=stride,
        pad_lo=pad_lo,
        pad_hi=pad_hi,
        spread=(1,) * len(stride),
    )


def identity(channels: int, rank: int) -> AffineConv:
    """Y = X for `rank` spatial axes: a depthwise 1x1 kernel of ones."""
    return subsampled(channels, (1,) * rank)


def subsampled(channels: int, stride: Axes) -> AffineConv:
    """Every `stride`-th position of X from the first one on."""
    rank = len(stride)
    shape, unit, zero = (channels, 1, *[1] * rank), (1,) * rank, (0,) * rank

    def ones() -> Tensor:
        return torch.ones(shape, dtype=torch.float64)

    return from_conv(ones, shape, stride=stride, pad_lo=zero, pad_hi=zero, dilation=unit, groups=channels)


def average_pool(channels: int, size: Axes, stride: Axes, padding: Axes, divisor: int) -> AffineConv:
    """The sum over windows of `size`, padded by zeros, over `divisor`: a depthwise kernel of equal weights."""
    shape = (channels, 1, *size)

    def weight() -> Tensor:
        return torch.full(shape, 1 / divisor, dtype=torch.float64)

    unit = (1,) * len(size)
    return from_conv(weight, shape, stride=stride, pad_lo=padding, pad_hi=padding, dilation=unit, groups=channels)


def batch_norm_rows(
    weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Scale and shift, float64 (channels,), of a batch norm that uses its running statistics.

    Y = scale * X + shift with scale = weight / sqrt(var + eps) and shift = bias - scale * mean
    (arXiv 1502.03167). All arguments are float64 (channels,).
    """
    scale = (var + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    shift = -scale * mean
    return scale, shift if bias is None else shift + bias


# Operators of operators


def scale_rows(op: AffineConv, scale: Tensor, shift: Tensor | float = 0.0) -> AffineConv:
    """scale[o] * Y[o] + shift[o], for `scale` and `shift` of float64 (out_channels,)."""
    return replace(
        op,
        band=bands.scaled(op.band, scale),
        make_bias=lambda: op.bias * scale + shift,
        border=op.border and bands.scaled(op.border, scale),
    )


def take_rows(op: AffineConv, index: Tensor) -> AffineConv:
    """The output channels at `index`, int64 (n,), in that order."""
    return replace(
        op,
        band=bands.rows(op.band, index),
        make_bias=lambda: op.bias[index],
        border=op.border and bands.rows(op.border, index),
    )


def pool(op: AffineConv) -> AffineConv:
    """The mean of Y over all positions: a pointwise operator commutes with it, and no other does."""
    band = replace(op.band, make_weight=lambda: op.band.weight().flatten(1), taps=())
    axes = dict.fromkeys(("extent", "stride", "pad_lo", "pad_hi", "spread"), ())
    return replace(op, band=band, **axes, transposed=False, pooled=True)


def obstacle_to_meeting(a: AffineConv, b: AffineConv) -> str | None:
    """Why the outputs of two operators on one source do not lie on one grid, or None if they do."""
    if a.pooled != b.pooled:
        return "one branch is a mean over all positions and the other is not"
    if a.spread != b.spread:
        return f"the branches make their input larger by different factors, {a.spread} and {b.spread}"
    if a.stride != b.stride:
        return f"the branches differ in stride, {a.stride} and {b.stride}"
    if a.shrinkage != b.shrinkage:
        return (
            f"the branches differ in kernel extent less padding, {a.shrinkage} and {b.shrinkage}, "
            "so their outputs do not align at every input size"
        )
    return None


def add(a: AffineConv, b: AffineConv) -> AffineConv | str:
    """a + b of two operators on one source, or why that is no such operator."""
    if a.out_channels != b.out_channels:
        return f"one branch has {a.out_channels} channels and the other {b.out_channels}"
    if obstacle := obstacle_to_meeting(a, b):
        return obstacle
    a, b = _aligned([a, b])
    edges = [op.border for op in (a, b) if op.border is not None]
    return replace(
        a,
        band=bands.added(a.band, b.band),
        make_bias=lambda: a.bias + b.bias,
        border=bands.added(*edges) if len(edges) == 2 else next(iter(edges), None),
        transposed=a.transposed and b.transposed,
    )


def concatenate(ops: Sequence[AffineConv]) -> AffineConv | str:
    """The output channels of operators on one source one after the other, or why that is no such operator."""
    for other in ops[1:]:
        if obstacle := obstacle_to_meeting(ops[0], other):
            return obstacle
    if any(op.border is not None for op in ops):
        return "one of its branches has a border of its own"
    ops = _aligned(ops)
    return replace(
        ops[0],
        band=bands.stacked([op.band for op in ops]),
        make_bias=lambda: torch.cat([op.bias for op in ops]),
        transposed=all(op.transposed for op in ops),
    )


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


def _aligned(ops: Sequence[AffineConv]) -> list[AffineConv]:
    """The same operators with one window: that of the largest padding."""
    pad_lo = tuple(map(max, zip(*(op.pad_lo for op in ops), strict=True)))
    pad_hi = tuple(map(max, zip(*(op.pad_hi for op in ops), strict=True)))
    extent = tuple(n + lo + hi for n, lo, hi in zip(ops[0].shrinkage, pad_lo, pad_hi, strict=True))
    shifts = [tuple(lo - own for lo, own in zip(pad_lo, op.pad_lo, strict=True)) for op in ops]
    return [
        replace(
            op,
            band=bands.moved(op.band, shift),
            border=op.border and bands.moved(op.border, shift),
            pad_lo=pad_lo,
            pad_hi=pad_hi,
            extent=extent,
        )
        for op, shift in zip(ops, shifts, strict=True)
    ]
