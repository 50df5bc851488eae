"""Kernels row by row: each output channel reads one band of neighbouring input channels, at some taps.

Dense, grouped and depthwise kernels, slices and concatenations of them, and products of all these are such
bands, so one form serves them all. Weights are made when they are asked for, in float64: a network has many
more operators than it has regions worth folding.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from itertools import product
from math import gcd, prod

import torch
from torch import Tensor

Axes = tuple[int, ...]  # one number for each spatial axis
Taps = tuple[Axes, ...]  # for each spatial axis the ascending positions of the taps

_kept: ContextVar[dict[Callable[[], Tensor], Tensor] | None] = ContextVar("kept", default=None)


@dataclass(frozen=True, eq=False)
class Band:
    """A linear map from input channels and taps to output channels.

    Attributes:
        make_weight: Makes what `weight` gives.
        start: First input channel that each row reads, int64 (out_channels,).
        stop: One past the last one.
        taps: Positions at which the kernel may differ from zero.
    """

    make_weight: Callable[[], Tensor]
    start: Tensor
    stop: Tensor
    taps: Taps

    @property
    def width(self) -> int:
        return int((self.stop - self.start).max())

    def weight(self) -> Tensor:
        """The weight, float64 (out_channels, width, *tap counts).

        Row o, column w belongs to input channel start[o] + w, and is zero from stop[o] on; `width` is the widest row's.
        """
        kept = _kept.get()
        if kept is None:
            return self.make_weight()
        if self.make_weight not in kept:
            kept[self.make_weight] = self.make_weight()
        return kept[self.make_weight]


@contextmanager
def weights_kept() -> Iterator[None]:
    """Make each weight once within this block.

    The weight of one kernel reads those of its terms, and without this, a chain of residual blocks would make its
    first ones once for every way through the blocks. They are dropped at the end: kept for a whole network they would
    take many times its memory.
    """
    if _kept.get() is not None:
        yield
        return
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def grouped(weight: Callable[[], Tensor], out_channels: int, group_width: int, groups: int, taps: Taps) -> Band:
    """The band of a convolution's weight (out_channels, group_width, *tap counts) of `groups` blocks."""
    block = torch.arange(groups).repeat_interleave(out_channels // groups)
    return Band(weight, block * group_width, (block + 1) * group_width, taps)


def scaled(band: Band, scale: Tensor) -> Band:
    """Row o times scale[o]."""

    def weight() -> Tensor:
        made = band.weight()
        return made * scale.reshape(-1, *[1] * (made.dim() - 1))

    return replace(band, make_weight=weight)


def moved(band: Band, shift: Axes) -> Band:
    """All taps `shift` further along each axis."""
    taps = tuple(tuple(t + by for t in own) for own, by in zip(band.taps, shift, strict=True))
    return replace(band, taps=taps)


def spread(band: Band, by: Axes) -> Band:
    """All taps `by` times as far from the first position of the window along each axis."""
    taps = tuple(tuple(t * n for t in own) for own, n in zip(band.taps, by, strict=True))
    return replace(band, taps=taps)


def rows(band: Band, index: Tensor) -> Band:
    """The rows at `index`, int64 (n,), in that order."""
    width = int((band.stop - band.start)[index].max())
    return replace(
        band, make_weight=lambda: band.weight()[index, :width], start=band.start[index], stop=band.stop[index]
    )


def stacked(bands: Sequence[Band]) -> Band:
    """The rows of all bands one after the other."""
    taps = _union([band.taps for band in bands])
    start, stop = (torch.cat([getattr(band, end) for band in bands]) for end in ("start", "stop"))
    made = Band(lambda: torch.cat([_placed(band, band.start, made.width, taps) for band in bands]), start, stop, taps)
    return made


def added(a: Band, b: Band) -> Band:
    """a + b: each row reads what either of the two reads."""
    taps = _union([a.taps, b.taps])
    start, stop = torch.minimum(a.start, b.start), torch.maximum(a.stop, b.stop)

    def weight() -> Tensor:
        return _placed(a, start, made.width, taps) + _placed(b, start, made.width, taps)

    made = Band(weight, start, stop, taps)
    return made


def composed(outer: Band, inner: Band, step: Axes) -> Band:
    """`outer` after `inner`, whose output positions are `step` apart in its input: taps s * step + t."""
    sums = [
        sorted({s * by + t for s, t in product(own, below)})
        for own, below, by in zip(outer.taps, inner.taps, step, strict=True)
    ]
    # the rows of one block read the same channels; a depthwise band has as many blocks as rows
    blocks, block_of_row = torch.unique(torch.stack([outer.start, outer.stop]), dim=1, return_inverse=True)
    spans = blocks.T.tolist()
    ends = [(inner.start[lo:hi].min(), inner.stop[lo:hi].max()) for lo, hi in spans]
    start, stop = (torch.stack(end)[block_of_row] for end in zip(*ends, strict=True))

    def weight() -> Tensor:
        ours, theirs = _flat(outer.weight()), _flat(inner.weight())
        places = _places(outer.taps, inner.taps, step, sums)
        total = torch.zeros(len(start), made.width, prod(map(len, sums)), dtype=torch.float64)
        if all(hi - lo == 1 for lo, hi in spans):
            below = theirs[outer.start]
            for s, at in enumerate(places):
                total[:, : below.shape[1], at] += ours[:, :1, s, None] * below
        else:
            for block, (lo, hi) in enumerate(spans):
                own = (block_of_row == block).nonzero().flatten()
                below = _shifted(theirs[lo:hi], inner.start[lo:hi] - ends[block][0], made.width)
                for s, at in enumerate(places):
                    part = torch.tensordot(ours[own, : hi - lo, s], below, 1)
                    total[own] = total[own].index_add(2, at, part)
        return total.reshape(len(start), made.width, *map(len, sums))

    made = Band(weight, start, stop, tuple(map(tuple, sums)))
    return made


def total(band: Band, values: Tensor) -> Tensor:
    """What the band makes of a constant map, `values` (in_channels,) at every position: (out_channels,)."""
    with weights_kept():
        weight = _flat(band.weight()).sum(2)
    channel = (band.start[:, None] + torch.arange(weight.shape[1])).clamp_max(len(values) - 1)
    return (weight * values[channel]).sum(1)  # beyond its stop a row's weight is zero


def groups(band: Band, in_channels: int) -> int:
    """The largest number of diagonal blocks in which all rows keep to their block's channels."""
    out_channels = len(band.start)
    most = gcd(out_channels, in_channels)
    row = torch.arange(out_channels)
    for count in range(most, 1, -1):
        if most % count == 0:
            block, width = row // (out_channels // count), in_channels // count
            if bool(((band.start >= block * width) & (band.stop <= (block + 1) * width)).all()):
                return count
    return 1


def blocks(band: Band, in_channels: int, count: int) -> Tensor:
    """The weight of a convolution of `count` groups: float64 (out_channels, in_channels // count, *tap counts)."""
    block = torch.arange(count).repeat_interleave(len(band.start) // count)
    width = in_channels // count
    with weights_kept():
        return _placed(band, block * width, width, band.taps)


def grid(places: Sequence[Sequence[int]]) -> tuple:
    """An index that selects, on the spatial axes of a kernel, the product of the places of each axis."""
    rank = len(places)
    shaped = [torch.tensor(own).reshape([-1 if i == j else 1 for j in range(rank)]) for i, own in enumerate(places)]
    return (slice(None), slice(None), *shaped)


def _placed(band: Band, start: Tensor, width: int, taps: Taps) -> Tensor:
    """The band's weight with rows that begin at `start` and are `width` wide, on the taps of a larger support."""
    weight = _shifted(band.weight(), band.start - start, width)
    if taps == band.taps:
        return weight
    wider = torch.zeros(*weight.shape[:2], *map(len, taps), dtype=torch.float64)
    wider[grid([[all_.index(t) for t in own] for own, all_ in zip(band.taps, taps, strict=True)])] = weight
    return wider


def _shifted(weight: Tensor, by: Tensor, width: int) -> Tensor:
    """Row r moved by[r] columns to the right, in a tensor of `width` columns."""
    if weight.shape[1] == width and not by.any():
        return weight
    wide = torch.zeros(len(weight), width + weight.shape[1], *weight.shape[2:], dtype=torch.float64)
    wide[torch.arange(len(weight))[:, None], by[:, None] + torch.arange(weight.shape[1])] = weight
    return wide[:, :width]


def _flat(weight: Tensor) -> Tensor:
    """(out_channels, width, taps), also of a kernel without spatial axes."""
    return weight.reshape(*weight.shape[:2], -1)


def _union(supports: Sequence[Taps]) -> Taps:
    return tuple(tuple(sorted(set().union(*axis))) for axis in zip(*supports, strict=True))


def _places(outer: Taps, inner: Taps, step: Axes, sums: list[list[int]]) -> list[Tensor]:
    """For each outer tap, where in the flattened sums each inner tap goes."""
    found = []
    for above in product(*outer):
        flat = torch.zeros(1, dtype=torch.int64)
        for s, own, by, all_ in zip(above, inner, step, sums, strict=True):
            at = torch.tensor([all_.index(s * by + t) for t in own])
            flat = (flat[:, None] * len(all_) + at).flatten()
        found.append(flat)
    return found
