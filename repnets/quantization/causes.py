"""Causes of a wide channel in a fused layer: its identity, a batch norm's gain, or the sum of its branches."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from repnets.fusion.report import FoldedRegion

_OUTSTANDING = 10.0  # least ratio of an outstanding gain to that of the median channel
_WIDE = 4.0  # the same for the gain of an identity branch
_COSTLY = 10.0  # decibels

_QAREPVGG = (
    "Train with QARepVGG's block, whose identity and 1x1 have no batch norm of their own (arXiv 2212.01593; the "
    "networks qarepvgg_a0 and qarepvgg_b0)."
)
_EQUALIZE = (
    "The stage `quantize` equalizes layers where the graph allows it, and keeps in float what still loses too much."
)
_REVIVE = (
    "If the statistics are not those of its data, estimate them anew (`recalibrate_bn`). If they are, the channel is "
    "dead: train longer or with a lower learning rate, or let the stage `quantize` keep the layer in float."
)
_REMEDIES = {
    "identity": _QAREPVGG,
    "branches": _QAREPVGG,
    "dead": _REVIVE,
    "gain": _EQUALIZE,
    "wide channel": _EQUALIZE,
}


@dataclass(frozen=True)
class Cause:
    """Why a channel of a layer has a wide range.

    Attributes:
        cause: `identity`, `gain`, `branches` or `wide channel`.
        reason: The figures behind it, as a sentence.
        remedy: What to do, as a sentence.
    """

    cause: str
    reason: str
    remedy: str


def of_channel(model: nn.Module, region: FoldedRegion | None, channel: int, weight: Tensor, tap: float | None) -> Cause:
    """Why an output channel of a layer is wide.

    Args:
        model: The branched network.
        region: That the layer was folded from; None where it was not folded.
        channel: The channel.
        weight: (out, in // groups, *kernel size), of the layer.
        tap: The weight from the same input channel at the kernel's centre; None if the layer has none.
    """
    norms = _norms(model, region)
    dead = {path: norm for path, norm in norms.items() if float(norm.running_var[channel]) < norm.eps}
    identities = [path for path in region.identities if path in norms] if region is not None else []
    outstanding = _most_outstanding(
        dead or {path: norm for path, norm in norms.items() if path not in identities}, channel
    )
    if outstanding is not None:
        path, gain, middle = outstanding
        variance, eps = float(norms[path].running_var[channel]), norms[path].eps
        constant = f" (its variance there is {variance:.1e}, below eps, {eps:g})" if path in dead else ""
        reason = (
            f"The batch norm {path!r} multiplies channel {channel} by {gain:.3g}, the median channel by "
            f"{middle:.2g}{constant}."
        )
        return Cause("gain", reason, _REMEDIES["dead" if path in dead else "gain"])
    wide = [path for path in identities if float(_gain(norms[path])[channel] / _gain(norms[path]).median()) >= _WIDE]
    if wide and _is_the_identity(norms, region, channel, weight, tap):
        path, gain = wide[0], _gain(norms[wide[0]])
        reason = (
            f"The batch norm of its identity branch, {path!r}, has a gain of {float(gain[channel]):.3g} in channel "
            f"{channel} ({float(gain.median()):.2g} in the median channel)"
        )
        if tap is not None:
            times = _beside(weight[channel], tap)
            reason += f": a single tap on the kernel's centre, {times:.3g} times the root mean square of the channel's "
            reason += "other weights"
        reason += "."
        return Cause("identity", reason, _REMEDIES["identity"])
    summed = {path: _scale(norms[path])[channel] for path in (region.branches if region else ()) if path in norms}
    if len(summed) > 1:
        scales = ", ".join(f"{float(scale):.2g} of {path!r}" for path, scale in summed.items())
        reason = f"It adds up {len(summed)} batch norms, whose standard deviations in channel {channel} are {scales}."
        return Cause("branches", reason, _REMEDIES["branches"])
    size = weight.abs().flatten(1).amax(1)
    reason = (
        f"The largest weight of channel {channel} is {float(size[channel]):.3g}, that of the median channel "
        f"{float(size.median()):.3g}."
    )
    return Cause("wide channel", reason, _REMEDIES["wide channel"])


def of_tap(model: nn.Module, region: FoldedRegion | None, beside: float | None, without: float | None) -> Cause | None:
    """Whether the identity branch of a layer costs its other branches their precision.

    Args:
        model: The branched network.
        region: That the layer was folded from; None where it was not folded.
        beside: Signal-to-noise ratio of the other branches in int8, dB; None if the layer has no identity.
        without: The same without the identity.

    Returns:
        None if it does not.
    """
    if region is None or beside is None or without is None or without - beside < _COSTLY:
        return None
    reason = (
        f"Its identity branch, {region.identities[0]!r}, stands on the kernel's centre and sets the scales: int8 "
        f"leaves the other branches {beside:.0f} dB, and {without:.0f} dB without the identity."
    )
    remedy = _REMEDIES["identity"] if region.identities[0] in _norms(model, region) else _EQUALIZE
    return Cause("identity", reason, remedy)


def _is_the_identity(
    norms: dict[str, _BatchNorm], region: FoldedRegion, channel: int, weight: Tensor, tap: float | None
) -> bool:
    """Whether the identity has the widest range of the branches, or the largest weight of the channel."""
    scales = {path: float(_scale(norms[path])[channel]) for path in region.branches if path in norms}
    is_widest = max(scales, key=scales.__getitem__) in region.identities
    return is_widest or (tap is not None and abs(tap) >= float(weight[channel].abs().max()))


def _most_outstanding(norms: dict[str, _BatchNorm], channel: int) -> tuple[str, float, float] | None:
    """The batch norm whose gain in a channel is farthest above that of its median channel, if it is far."""
    found = []
    for path, norm in norms.items():
        gain = _gain(norm)
        found.append((path, float(gain[channel]), float(gain.median())))
    far = [one for one in found if one[1] >= _OUTSTANDING * one[2]]
    return max(far, key=lambda one: one[1], default=None)


def _norms(model: nn.Module, region: FoldedRegion | None) -> dict[str, _BatchNorm]:
    """The batch norms of a region that have a channel for each of its outputs."""
    modules = dict(model.named_modules())
    paths = region.paths if region is not None else ()
    return {
        path: norm
        for path in paths
        if isinstance(norm := modules.get(path), _BatchNorm)
        and norm.running_var is not None
        and norm.num_features == region.out_channels
    }


def _gain(norm: _BatchNorm) -> Tensor:
    return _scale(norm) / (norm.running_var.double() + norm.eps).sqrt()


def _scale(norm: _BatchNorm) -> Tensor:
    """Standard deviation of each channel after it, by its own statistics."""
    if norm.weight is None:
        return torch.ones(norm.num_features, dtype=torch.float64)
    return norm.weight.detach().double().abs()


def _beside(row: Tensor, tap: float) -> float:
    others = row.double().square().sum() - tap**2
    return abs(tap) / float((others / max(row.numel() - 1, 1)).clamp_min(1e-30).sqrt())
