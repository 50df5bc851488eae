"""The convolution that an operator is: its shape, and its weight."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, prod

import torch
from torch import Tensor

from repnets.fusion import bands
from repnets.fusion.affine_conv import AffineConv
from repnets.fusion.bands import Axes, Band


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
    def weights(self) -> int:
        """Elements of the weight: multiply-accumulates for one output position, all channels."""
        return self.out_channels * (self.in_channels // self.groups) * prod(self.kernel_size)


def conv_shape(op: AffineConv) -> ConvShape:
    """The smallest symmetrically padded convolution that computes `op`, its border term aside.

    The window is cut to the taps, the smaller padding is made up for by zero taps, since a convolution
    has one padding for both ends (and none that crops), and the dilation is the greatest step on which all
    taps and the window's end lie.
    """
    axes = _fitted(op)
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
    return _on_grid(op, bands.blocks(op.band, op.in_channels, op.groups), op.band)


def border_weight(op: AffineConv) -> Tensor | None:
    """The weight, float64 (out, 1, *kernel size), that the same convolution has on a map of ones; or None."""
    return None if op.border is None else _on_grid(op, bands.blocks(op.border, 1, 1), op.border)


def uneven_padding(op: AffineConv) -> list[tuple[int, int]] | None:
    """Zeros before and after each axis, where they differ and zero taps make up for it; None where none has to."""
    ends = [_tight(*axis) for axis in _axes(op)]
    differ = any(before != after for before, after in ends) and min(map(min, ends)) >= 0
    return ends if differ else None


def _on_grid(op: AffineConv, weight: Tensor, band: Band) -> Tensor:
    axes = _fitted(op)
    sizes = conv_shape(op).kernel_size
    if tuple(weight.shape[2:]) == sizes:
        return weight
    wide = torch.zeros(*weight.shape[:2], *sizes, dtype=torch.float64)
    places = [
        [(t + shift) // step for t in taps]
        for taps, (shift, _, _, step) in zip(band.taps, axes, strict=True)
    ]  # fmt: skip
    wide[bands.grid(places)] = weight
    return wide


def _fitted(op: AffineConv) -> list[tuple[int, int, int, int]]:
    """(shift of the taps, extent, padding, dilation) of each axis, cut to the taps and padded alike at both ends."""
    return [_fit(*axis) for axis in _axes(op)]


def _axes(op: AffineConv) -> list[tuple[list[int], int, int, int]]:
    """(taps, extent, pad_lo, pad_hi) of each axis."""
    supports = [op.band.taps, *([op.border.taps] if op.border is not None else [])]
    taps = [sorted(set().union(*axis)) for axis in zip(*supports, strict=True)]
    return list(zip(taps, op.extent, op.pad_lo, op.pad_hi, strict=True))


def _tight(taps: Sequence[int], extent: int, pad_lo: int, pad_hi: int) -> tuple[int, int]:
    """The padding at both ends of a window that is cut to its taps."""
    return pad_lo - taps[0], pad_hi - (extent - 1 - taps[-1])


def _fit(taps: Sequence[int], extent: int, pad_lo: int, pad_hi: int) -> tuple[int, int, int, int]:
    tight_lo, tight_hi = _tight(taps, extent, pad_lo, pad_hi)
    padding = max(tight_lo, tight_hi, 0)
    shift = padding - tight_lo - taps[0]
    end = taps[-1] + shift + padding - tight_hi
    return shift, end + 1, padding, gcd(*(t + shift for t in taps), end) or 1
