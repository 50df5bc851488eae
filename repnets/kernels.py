"""The algebra of affine convolutions: pure functions on float64 tensors.

Every linear branch of a network is, relative to the tensor it starts from, one operator, per spatial axis

    Y[o, p] = b[o] + sum_{i, t} K[o, i, t] * X0[i, s * p - pl + t],        t in the tap support, 0 <= t < k

where X0 is X extended by zeros. The output has floor((H + pl + pr - k) / s) + 1 positions for every input
size H. A convolution, a batch norm in eval mode and the identity are such operators, and so is the sum of
two of them (RepVGG, arXiv 2101.03697, section 3.3; Diverse Branch Block, arXiv 2103.13425, section 3.2).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import gcd, prod

import torch
from torch import Tensor

Axes = tuple[int, ...]  # one number for each spatial axis


@dataclass(frozen=True, eq=False)
class AffineConv:
    """An affine, translation-equivariant map between feature maps of any size.

    Attributes:
        kernel: Makes K on its tap support: float64 (out_channels, in_channels // groups, *tap counts).
            It is a function because a network has many more operators than it has regions worth folding.
        bias: b, float64 (out_channels,).
        in_channels: Channels of X.
        groups: Blocks of the block-diagonal channel structure; `in_channels` for a depthwise operator.
        taps: For each axis the ascending positions t at which K may differ from zero.
        extent: k, the size of the window the taps lie in. It is the alignment of the operator, and may be
            larger than what the taps span.
        stride: s.
        pad_lo: pl, zeros before the first position; negative crops.
        pad_hi: pr, zeros after the last position; negative crops.
    """

    kernel: Callable[[], Tensor]
    bias: Tensor
    in_channels: int
    groups: int
    taps: tuple[Axes, ...]
    extent: Axes
    stride: Axes
    pad_lo: Axes
    pad_hi: Axes

    @property
    def out_channels(self) -> int:
        return self.bias.numel()

    @property
    def shrinkage(self) -> Axes:
        """k - pl - pr: with the stride, all that the size of the output depends on."""
        return tuple(k - lo - hi for k, lo, hi in zip(self.extent, self.pad_lo, self.pad_hi, strict=True))


@dataclass(frozen=True)
class ConvShape:
    """What `torch.nn.Conv{1,2,3}d` needs to know of a convolution besides its weights."""

    in_channels: int
    out_channels: int
    kernel_size: Axes
    stride: Axes
    padding: Axes
    dilation: Axes
    groups: int

    @property
    def macs_per_position(self) -> int:
        """Multiply-accumulates for one output position, all channels."""
        return self.out_channels * (self.in_channels // self.groups) * prod(self.kernel_size)


def from_conv(
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Axes,
    pad_lo: Axes,
    pad_hi: Axes,
    dilation: Axes,
    groups: int = 1,
) -> AffineConv:
    """The operator of a convolution with `weight` (out, in // groups, *kernel size) and `bias` (out,)."""
    out_channels, group_width, *sizes = weight.shape
    return AffineConv(
        kernel=weight.double,
        bias=torch.zeros(out_channels, dtype=torch.float64) if bias is None else bias.double(),
        in_channels=group_width * groups,
        groups=groups,
        taps=tuple(tuple(range(0, size * step, step)) for size, step in zip(sizes, dilation, strict=True)),
        extent=tuple((size - 1) * step + 1 for size, step in zip(sizes, dilation, strict=True)),
        stride=stride,
        pad_lo=pad_lo,
        pad_hi=pad_hi,
    )


def identity(channels: int, rank: int) -> AffineConv:
    """Y = X for `rank` spatial axes: a depthwise 1x1 kernel of ones."""
    ones = torch.ones(channels, 1, *[1] * rank, dtype=torch.float64)
    unit, zero = (1,) * rank, (0,) * rank
    return from_conv(ones, stride=unit, pad_lo=zero, pad_hi=zero, dilation=unit, groups=channels)


def batch_norm_rows(
    weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Scale and shift, float64 (channels,), of a batch norm that uses its running statistics.

    Y = scale * X + shift with scale = weight / sqrt(var + eps) and shift = bias - scale * mean
    (arXiv 1502.03167).
    """
    scale = (var.double() + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.double()
    shift = -scale * mean.double()
    return scale, shift if bias is None else shift + bias.double()


def scale_rows(op: AffineConv, scale: Tensor, shift: Tensor | float = 0.0) -> AffineConv:
    """scale[o] * Y[o] + shift[o], for `scale` and `shift` of float64 (out_channels,)."""

    def kernel() -> Tensor:
        weight = op.kernel()
        return weight * scale.reshape(-1, *[1] * (weight.dim() - 1))

    return replace(op, kernel=kernel, bias=op.bias * scale + shift)


def sum_obstacle(a: AffineConv, b: AffineConv) -> str | None:
    """Why a + b of two operators on one source is no such operator, or None if it is one."""
    if a.out_channels != b.out_channels:
        return f"one branch has {a.out_channels} channels and the other {b.out_channels}"
    if a.stride != b.stride:
        return f"the branches differ in stride, {a.stride} and {b.stride}"
    if a.shrinkage != b.shrinkage:
        return (
            f"the branches differ in kernel extent less padding, {a.shrinkage} and {b.shrinkage}, "
            "so their outputs do not align at every input size"
        )
    return None


def add(a: AffineConv, b: AffineConv) -> AffineConv:
    """a + b of two operators on one source, for which `sum_obstacle` is None.

    The windows are aligned by the larger padding, the kernels added on the union of their taps, and the
    groups are the finest structure that holds both: gcd(groups of a, groups of b).
    """
    if a is b:
        return scale_rows(a, torch.full_like(a.bias, 2.0))
    pad_lo = tuple(map(max, a.pad_lo, b.pad_lo))
    pad_hi = tuple(map(max, a.pad_hi, b.pad_hi))
    groups = gcd(a.groups, b.groups)
    shifted = [
        tuple(tuple(t + lo - own for t in taps) for taps, lo, own in zip(op.taps, pad_lo, op.pad_lo, strict=True))
        for op in (a, b)
    ]
    taps = tuple(tuple(sorted({*ours, *theirs})) for ours, theirs in zip(*shifted, strict=True))

    def kernel() -> Tensor:
        width = a.in_channels // groups
        total = torch.zeros(a.out_channels, width, *map(len, taps), dtype=torch.float64)
        for op, own_taps in zip((a, b), shifted, strict=True):
            places = [[union.index(t) for t in own] for union, own in zip(taps, own_taps, strict=True)]
            total[_grid(places)] += _regroup(op.kernel(), op.groups, groups)
        return total

    return AffineConv(
        kernel=kernel,
        bias=a.bias + b.bias,
        in_channels=a.in_channels,
        groups=groups,
        taps=taps,
        extent=tuple(n + lo + hi for n, lo, hi in zip(a.shrinkage, pad_lo, pad_hi, strict=True)),
        stride=a.stride,
        pad_lo=pad_lo,
        pad_hi=pad_hi,
    )


def conv_shape(op: AffineConv) -> ConvShape:
    """The smallest symmetrically padded convolution that computes `op`.

    The window is cut to the taps, the smaller padding is made up for by zero taps, since a convolution
    has one padding for both ends (and none that crops), and the dilation is the greatest step on which all
    taps and the window's end lie.
    """
    axes = [_fit(*axis) for axis in zip(op.taps, op.extent, op.pad_lo, op.pad_hi, strict=True)]
    return ConvShape(
        in_channels=op.in_channels,
        out_channels=op.out_channels,
        kernel_size=tuple(len(range(0, extent, step)) for _, extent, _, step in axes),
        stride=op.stride,
        padding=tuple(padding for _, _, padding, _ in axes),
        dilation=tuple(step for _, _, _, step in axes),
        groups=op.groups,
    )


def conv_weight(op: AffineConv) -> Tensor:
    """The weight, float64 (out, in // groups, *kernel size), of the convolution `conv_shape` describes."""
    axes = [_fit(*axis) for axis in zip(op.taps, op.extent, op.pad_lo, op.pad_hi, strict=True)]
    sizes = [len(range(0, extent, step)) for _, extent, _, step in axes]
    weight = torch.zeros(op.out_channels, op.in_channels // op.groups, *sizes, dtype=torch.float64)
    weight[_grid([[t // step for t in taps] for taps, _, _, step in axes])] = op.kernel()
    return weight


def _fit(taps: Axes, extent: int, pad_lo: int, pad_hi: int) -> tuple[Axes, int, int, int]:
    """(taps, extent, padding, dilation) of one axis, cut to its taps and padded alike at both ends."""
    tight_lo = pad_lo - taps[0]
    tight_hi = pad_hi - (extent - 1 - taps[-1])
    padding = max(tight_lo, tight_hi, 0)
    moved = tuple(t - taps[0] + padding - tight_lo for t in taps)
    end = moved[-1] + padding - tight_hi
    return moved, end + 1, padding, gcd(*moved, end) or 1


def _grid(places: list[list[int]]) -> tuple:
    """An index that selects, on the spatial axes of a kernel, the product of the places of each axis."""
    rank = len(places)
    shaped = [torch.tensor(own).reshape([-1 if i == j else 1 for j in range(rank)]) for i, own in enumerate(places)]
    return (slice(None), slice(None), *shaped)


def _regroup(kernel: Tensor, groups: int, coarser: int) -> Tensor:
    """A kernel of `groups` blocks written with the `coarser` number of blocks, which divides it."""
    if groups == coarser:
        return kernel
    ratio = groups // coarser
    out_channels, width, *taps = kernel.shape
    blocks = kernel.reshape(coarser, ratio, out_channels // groups, width, *taps)
    wide = kernel.new_zeros(coarser, ratio, out_channels // groups, ratio, width, *taps)
    wide.diagonal(dim1=1, dim2=3).copy_(blocks.movedim(1, -1))
    return wide.reshape(out_channels, ratio * width, *taps)
