"""Transposed convolutions as affine convolutions of their input, spread by the stride (arXiv 1603.07285, section 4)."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from repnets.fusion import affine_conv
from repnets.fusion.affine_conv import AffineConv
from repnets.fusion.bands import Axes


def from_transposed_conv(
    weight: Callable[[], Tensor],
    shape: Sequence[int],
    bias: Callable[[], Tensor] | None = None,
    *,
    stride: Axes,
    padding: Axes,
    output_padding: Axes,
    dilation: Axes,
    groups: int = 1,
) -> AffineConv:
    """The operator of a transposed convolution: that of the mirrored kernel, on its input spread by the stride.

    Args:
        weight: Makes the float64 weight of `shape`.
        shape: (in_channels, out_channels // groups, *kernel size).
        bias: As of `from_conv`.
        stride: A number for each axis, as the next three.
        padding: Positions cut off at both ends.
        output_padding: Positions added at the end.
        dilation: Step of the taps.
        groups: Blocks of the channels. Default 1.
    """
    in_channels, group_width, *sizes = shape
    ends = [step * (size - 1) - cut for size, step, cut in zip(sizes, dilation, padding, strict=True)]
    op = affine_conv.from_conv(
        lambda: mirrored(weight(), groups),
        (group_width * groups, in_channels // groups, *sizes),
        bias,
        stride=(1,) * len(sizes),
        pad_lo=tuple(ends),
        pad_hi=tuple(end + more for end, more in zip(ends, output_padding, strict=True)),
        dilation=dilation,
        groups=groups,
    )
    return replace(op, spread=stride, transposed=True)


def mirrored(weight: Tensor, groups: int) -> Tensor:
    """The kernel of a transposed convolution as that of a convolution, (out, in // groups, *kernel size), or back."""
    blocks = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return blocks.flip(tuple(range(2, blocks.dim())))
