"""The algebra of affine convolutions: pure functions on float64 tensors.

Every linear branch of a network is, relative to the tensor X it starts from, one operator, per spatial axis

    Y[o, p] = b[o] + sum_{i, t} K[o, i, t] * X0[i, s * p - pl + t] + sum_t e[o, t] * 1_0[s * p - pl + t]

where X0 is X extended by zeros and 1_0 a map of ones of X's size extended by zeros. The output has
floor((H + pl + pr - k) / s) + 1 positions for every input size H. A convolution, a batch norm in eval mode,
an average pool and the identity are such operators with e = 0, and sums and, where the border allows it,
products of them are such operators again (arXiv 2101.03697, section 3.3; arXiv 2103.13425, section 3.2).
What the border allows is `composition.padded`.

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
