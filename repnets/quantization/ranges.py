"""Scales of the roundings: the observed range of each activation, and the part of it that int8 covers.

The largest value seen sets the scale of a naive quantization; a single outlier then costs every other value its digits.
So a range may end below the largest value: at a percentile, or where the mean squared error is least (arXiv 2106.08295,
section 3.3.1).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from repnets.quantization.simulation import LIMIT, Layer, Rounding, Simulation, rounded

ACTIVATIONS = ("max", "percentile 99.99", "percentile 99.9", "mse")
"""Ways to choose an activation's range."""

WEIGHTS = ("max", "mse")
"""Ways to choose a weight's range, channel by channel."""

_BINS = 4096
_SMALLEST = 2.0**-24  # of a scale; a tensor of zeros has one too
_CUTS = torch.linspace(0.3, 1, 71)  # of the largest value: ends of a range that are tried for the mean squared error
_BIAS_LIMIT = 2.0**30  # of a bias in steps of input times weight: runtimes hold it in int32 and add to it


@dataclass
class Seen:
    """What was seen of an activation.

    Attributes:
        largest: Largest absolute value.
        by_channel: float32 (C,), by C: the same for each index of dimension 1, whose size may differ from batch to
            batch where it holds the images. Empty for a tensor of fewer dimensions: a number, a vector.
        counts: float64 (4096,): a histogram of the absolute values from 0 to `end`.
        end: Where the histogram ends, a power of two.
    """

    largest: float = 0.0
    by_channel: dict[int, Tensor] = field(default_factory=dict)
    counts: Tensor = field(default_factory=lambda: torch.zeros(_BINS, dtype=torch.float64))
    end: float = 2.0**-10

    def add(self, x: Tensor) -> None:
        """Look at one more batch."""
        size = x.abs()
        self.largest = max(self.largest, float(size.max()))
        if size.dim() > 1:
            channels = size.transpose(0, 1).flatten(1).amax(1)
            self.by_channel[len(channels)] = torch.maximum(self.by_channel.get(len(channels), channels), channels)
        self._widen(self.largest)
        self.counts += torch.histc(size, _BINS, 0, self.end).double()

    def scale(self, how: str) -> float:
        """A scale by one of `ACTIVATIONS`."""
        return max(self._range(how) / LIMIT, _SMALLEST)

    def together(self, other: Seen) -> Seen:
        """What was seen of two activations that have one scale, without their channels."""
        both = Seen(max(self.largest, other.largest), counts=self.counts, end=self.end)
        both._widen(other.end)
        narrower = Seen(counts=other.counts, end=other.end)
        narrower._widen(both.end)
        both.counts = both.counts + narrower.counts
        return both

    def _widen(self, end: float) -> None:
        """Let the histogram reach up to here."""
        while self.end < end:
            self.counts = torch.cat([self.counts.view(-1, 2).sum(1), self.counts.new_zeros(_BINS // 2)])
            self.end *= 2

    def _range(self, how: str) -> float:
        if how == "max":
            return self.largest
        width = self.end / _BINS
        if how.startswith("percentile"):
            # between the ends of a bin: scales that are whole multiples of one step would let sums of two activations
            # lie in the middle between two integers, where runtimes go either way
            covered = self.counts.cumsum(0)
            wanted = float(how.split()[1]) / 100 * float(covered[-1])
            bin = min(int(torch.searchsorted(covered, wanted)), _BINS - 1)
            above = float(covered[bin] - wanted) / max(float(self.counts[bin]), 1.0)
            return min((bin + 1 - above) * width, self.largest)
        middles = (torch.arange(_BINS, dtype=torch.float64) + 0.5) * width
        ends = _CUTS.double() * self.largest
        steps = (ends / LIMIT).clamp_min(_SMALLEST)[:, None]
        losses = ((rounded(middles, steps) - middles).square() * self.counts).sum(1)
        return float(ends[losses.argmin()])


def observe(simulation: Simulation, batches: Iterable[Tensor]) -> dict[Rounding, Seen]:
    """Run calibration images through the network in float32, and look at every activation that will be int8."""
    seen = {one: Seen() for one in simulation.activations}
    simulation.show(batches, {one: found.add for one, found in seen.items()})
    return seen


def set_activations(seen: dict[Rounding, Seen], how: str) -> None:
    """Set the scale of each activation, by one of `ACTIVATIONS`; those of one group get that of all they hold."""
    of_group: dict[int, Seen] = {}
    for one, found in seen.items():
        of_group[one.group] = of_group[one.group].together(found) if one.group in of_group else found
    scales = {group: found.scale(how) for group, found in of_group.items()}
    for one in seen:
        one.scale = torch.tensor([scales[one.group]])


def set_weights(simulation: Simulation, how: str, *, per_tensor: bool = False) -> None:
    """Set the scales of each weight from the weight as it is now.

    A channel of hardly any weight but with a bias, a dead one, gets a scale at which that bias, in steps of input times
    weight, still fits the runtimes' int32.

    Args:
        simulation: The scales of its activations are set already.
        how: One of `WEIGHTS`.
        per_tensor: One scale for all channels: what a naive quantization does. It is for comparison alone.
    """
    groups: dict[int, list[tuple[Layer, Tensor]]] = {}
    for layer in simulation.layers:
        rows = layer.weight.detach().transpose(0, layer.weight_rounding.axis).flatten(1)
        largest = rows.abs().amax(1)
        if per_tensor:
            largest = largest.max().expand_as(largest).clone()
        scale = largest / LIMIT
        if how == "mse":
            scale = _least_loss(rows, largest)
        scale = scale.clamp_min(_SMALLEST)
        if layer.bias is not None:
            scale = torch.maximum(scale, layer.bias.detach().abs() / (layer.input_rounding.scale * _BIAS_LIMIT))
        groups.setdefault(layer.weight_rounding.group, []).append((layer, scale))
    for layers in groups.values():  # those that read one weight
        shared = torch.stack([scale for _, scale in layers]).amax(0)
        for layer, _ in layers:
            layer.weight_rounding.scale = shared.clone()


def bias_step(layer_input: Tensor, weight: Tensor) -> Tensor:
    """float64 (out,): what 1 stands for in an accumulator, by the scales of input and weight."""
    return layer_input.double() * weight.double()


def snap_biases(simulation: Simulation) -> None:
    """Round each bias to a multiple of input scale times weight scale, in place.

    Integer runtimes hold it so, in int32. A program whose bias lies between two steps would differ from them in the
    last digit of many values, and after twenty layers in every logit; with this they agree.
    """
    with torch.no_grad():
        for layer in simulation.layers:
            if layer.bias is not None:
                step = bias_step(layer.input_rounding.scale, layer.weight_rounding.scale)
                layer.bias.copy_(((layer.bias.double() / step).round() * step).float())


def _least_loss(rows: Tensor, largest: Tensor) -> Tensor:
    """The scale of each row at which rounding it loses least, float32 (rows,)."""
    best = torch.full_like(largest, torch.inf)
    scale = largest / LIMIT
    for cut in _CUTS:
        step = (largest * cut / LIMIT).clamp_min(_SMALLEST)[:, None]
        loss = (rounded(rows, step) - rows).square().sum(1)
        better = loss < best
        best, scale = torch.where(better, loss, best), torch.where(better, step[:, 0], scale)
    return scale
