"""The convolution, or transposed convolution, that an operator is: its shape, and its weight."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, prod

import torch
from torch import Tensor

from repnets.fusion import bands
from repnets.fusion.affine_conv import AffineConv
from repnets.fusion.bands import Axes, Band
from repnets.fusion.transposed_conv import mirrored


@dataclass(frozen=True)
class ConvShape:
    """What `torch.nn.Conv{1,2,3}d` needs to know of a convolution besides its weights.

    Of a transposed one, which alone has an `output_padding`, what `torch.nn.ConvTranspose{1,2,3}d` does.
    """

    in_channels: int
    out_channels: int
    kernel_size: Axes
    stride: Axes
    padding: Axes
    dilation: Axes
    groups: int
    output_padding: Axes | None = None

    @property
    def weights(self) -> int:
        """Elements of the weight: multiply-accumulates for one output position, all channels.

        Of a transposed convolution it is for one input position.
        """
        return self.out_channels * (self.in_channels // self.groups) * prod(self.kernel_size)

    def macs(self, read: int, made: int) -> int:
        """Multiply-accumulates of a layer that reads and makes so many numbers."""
        spots = made // self.out_channels if self.output_padding is None else read // self.in_channels
        return self.weights * spots


def conv_shape(op: AffineConv) -> ConvShape:
    """The smallest symmetrically padded convolution that computes `op`, its border term aside.

    The window is cut to the taps, the smaller padding is made up for by zero taps, since a convolution
    has one padding for both ends (and none that crops), and the dilation is the greatest step on which all
    taps and the window's end lie. A transposed one has one padding too, and less output padding than its stride.
    """
    axes = _fitted(op)
    return ConvShape(
        in_channels=op.in_channels,
        out_channels=op.out_channels,
        kernel_size=tuple(len(range(0, axis.extent, axis.dilation)) for axis in axes),
        stride=op.spread if op.transposed else op.stride,
        padding=tuple(axis.padding for axis in axes),
        dilation=tuple(axis.dilation for axis in axes),
        groups=op.groups,
        output_padding=tuple(axis.output_padding for axis in axes) if op.transposed else None,
    )


def conv_weight(op: AffineConv) -> Tensor:
    """The weight of the convolution that `conv_shape` describes, float64 (out, in // groups, *kernel size).

    Of a transposed one it is (in, out // groups, *kernel size).
    """
    weight = _on_grid(op, bands.blocks(op.band, op.in_channels, op.groups), op.band)
    return mirrored(weight, op.groups) if op.transposed else weight


def border_weight(op: AffineConv) -> Tensor | None:
    """The weight, float64 (out, 1, *kernel size), that the same convolution has on a map of ones; or None.

    Of a transposed one it is (1, out, *kernel size).
    """
    if op.border is None:
        return None
    weight = _on_grid(op, bands.blocks(op.border, 1, 1), op.border)
    return mirrored(weight, 1) if op.transposed else weight


def uneven_padding(op: AffineConv) -> list[tuple[int, int]] | None:
    """Zeros before and after each axis, where they differ and zero taps make up for it; None where none has to."""
    if op.transposed:
        return None
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
        [(t + axis.shift) // axis.dilation for t in taps]
        for taps, axis in zip(band.taps, axes, strict=True)
    ]  # fmt: skip
    wide[bands.grid(places)] = weight
    return wide


@dataclass(frozen=True)
class _Axis:
    """One axis of a window that is cut to its taps, which then move by `shift`."""

    shift: int
    extent: int
    padding: int
    dilation: int
    output_padding: int = 0


def _fitted(op: AffineConv) -> list[_Axis]:
    """The axes of the convolution's window."""
    if op.transposed:
        return [_fit_transposed(*axis, step) for axis, step in zip(_axes(op), op.spread, strict=True)]
    return [_fit(*axis) for axis in _axes(op)]


def _axes(op: AffineConv) -> list[tuple[list[int], int, int, int]]:
    """(taps, extent, pad_lo, pad_hi) of each axis."""
    supports = [op.band.taps, *([op.border.taps] if op.border is not None else [])]
    taps = [sorted(set().union(*axis)) for axis in zip(*supports, strict=True)]
    return list(zip(taps, op.extent, op.pad_lo, op.pad_hi, strict=True))


def _tight(taps: Sequence[int], extent: int, pad_lo: int, pad_hi: int) -> tuple[int, int]:
    """The padding at both ends of a window that is cut to its taps."""
    return pad_lo - taps[0], pad_hi - (extent - 1 - taps[-1])


def _fit(taps: Sequence[int], extent: int, pad_lo: int, pad_hi: int) -> _Axis:
    tight_lo, tight_hi = _tight(taps, extent, pad_lo, pad_hi)
    padding = max(tight_lo, tight_hi, 0)
    shift = padding - tight_lo - taps[0]
    end = taps[-1] + shift + padding - tight_hi
    return _Axis(shift, end + 1, padding, _dilation(taps, shift, end))


def _fit_transposed(taps: Sequence[int], extent: int, pad_lo: int, pad_hi: int, spread: int) -> _Axis:
    tight_lo, tight_hi = _tight(taps, extent, pad_lo, pad_hi)
    # zero taps after the window, so that neither padding is negative, and before it, so that the second is allowed
    after = max(0, tight_lo - (taps[-1] - taps[0]), tight_lo - tight_hi)
    before = max(0, tight_hi + after - tight_lo - (spread - 1))
    shift = before - taps[0]
    end = taps[-1] + shift + after
    output_padding = tight_hi + after - tight_lo - before
    return _Axis(shift, end + 1, end - tight_lo - before, _dilation(taps, shift, end), output_padding)


def _dilation(taps: Sequence[int], shift: int, end: int) -> int:
    return gcd(*(t + shift for t in taps), end) or 1
