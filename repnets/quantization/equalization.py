"""Cross-layer equalization: move range from the activations between two layers into the weights of the second.

Between two layers with nothing but positively homogeneous operations between them (f(s x) = s f(x) for s > 0: a ReLU, a
mean), channel i of the first may be divided by any s_i > 0 and the second's weights for it multiplied: the network
computes the same (arXiv 1906.04721, section 4.1). An activation has one scale for all its channels, so a channel far
wider than the rest costs them their digits; s_i is chosen as arXiv 2211.10438 does, from the range of the activation
and that of the weights that read it. A depthwise layer has a scale for each of these, so there the activation alone
counts.

A ReLU6 is homogeneous below 6. A channel that stays below may be made wider, not quite up to there: an image that was
not seen may have a larger value than any that was, and what comes to lie above 6 is lost. A channel that comes near 6
keeps its scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from repnets.fusion.graph import arguments, pads_zeros
from repnets.quantization.ranges import Seen
from repnets.quantization.simulation import Layer, Rounding, Simulation

SHARES = (0.25, 0.5, 0.75)
"""How much of an activation's range goes to the weights: powers that are worth trying."""

_HOMOGENEOUS = (
    torch.ops.aten.relu.default,
    torch.ops.aten.mean.dim,
    torch.ops.aten.max_pool2d.default,
    torch.ops.aten.avg_pool2d.default,
    torch.ops.aten.adaptive_avg_pool2d.default,
    torch.ops.aten.dropout.default,
    torch.ops.aten.flatten.using_ints,
)
_MOST = 100.0  # times that a channel is scaled at most, either way
_HEADROOM = 1.5  # below a cap, over the largest value seen


@dataclass(frozen=True)
class Pair:
    """Two layers with positively homogeneous operations alone between them.

    Attributes:
        first, second: The layers.
        between: The rounding of what the second reads.
        caps: Where a ReLU6 or another hard tanh from 0 on lies between: where it ends, and the rounding of what it
            gives.
    """

    first: Layer
    second: Layer
    between: Rounding
    caps: tuple[tuple[float, Rounding], ...] = ()


def pairs(simulation: Simulation) -> list[Pair]:
    """The pairs of layers of a network that can be equalized, in order of execution."""
    layers = {
        layer.node: layer
        for layer in simulation.layers
        if layer.is_alone and not layer.is_transposed and _has_channels_second(layer)
    }
    found = []
    for first in layers.values():
        way = _way(simulation, first.node)
        caps = [(end, way[place + 1]) for place, node in enumerate(way) if (end := _cap(node)) is not None]
        capped = tuple((end, rounding) for end, node in caps if (rounding := simulation.rounding(node)) is not None)
        if not way or len(capped) < len(caps) or way[-1] not in layers:
            continue
        second = layers[way[-1]]
        if _channels_in(second) == len(first.weight):
            found.append(Pair(first, second, second.input_rounding, capped))
    return found


def equalize(simulation: Simulation, seen: dict[Rounding, Seen], share: float) -> int:
    """Scale the channels between each pair of layers, in place; the float network stays the same.

    Behind a ReLU6 it does for values of up to 1.5 times those of `seen`; larger ones may be cut off.

    Args:
        simulation: Scales of its roundings are to be set anew afterwards, from activations that are observed anew.
        seen: What `ranges.observe` gave for the network as it is.
        share: 0 to 1: how much of the activations' spread is moved into the weights.

    Returns:
        How many pairs were scaled.
    """
    found = pairs(simulation)
    with torch.no_grad():
        for pair in found:
            by = _scales(pair, seen, share)
            pair.first.weight.div_(by.view(-1, *[1] * (pair.first.weight.dim() - 1)))
            if pair.first.bias is not None:
                pair.first.bias.div_(by)
            _scale_input(pair.second, by)
    return len(found)


def _scales(pair: Pair, seen: dict[Rounding, Seen], share: float) -> Tensor:
    """s_i; 1 for a channel that is never active or never read; on average 1, or where there is a cap at most 1."""
    channels = len(pair.first.weight)
    activation, weights = seen[pair.between].by_channel[channels], _read(pair.second)
    alive = (activation > 0) & (weights > 0)
    if not bool(alive.any()):
        return torch.ones_like(activation)
    if pair.second.groups == channels:
        share = 1.0
    by = activation.pow(share) / weights.clamp_min(1e-30).pow(1 - share)
    if pair.caps:
        by = by * weights.max().pow(1 - share) / min(end for end, _ in pair.caps) ** share
    else:
        by = by / by[alive].log().mean().exp()
    by = by.clamp(1 / _MOST, _MOST)
    for end, rounding in pair.caps:
        by = by.maximum(_HEADROOM * seen[rounding].by_channel[channels] / end).clamp(max=1)
    return torch.where(alive, by, 1.0)


def _read(layer: Layer) -> Tensor:
    """Largest absolute weight of each input channel, float32 (in,)."""
    return _by_input(layer).abs().amax((1, 3)).flatten()


def _by_input(layer: Layer) -> Tensor:
    """A view of a layer's weight: (groups, out / groups, in / groups, kernel)."""
    groups = layer.groups
    return layer.weight.view(groups, len(layer.weight) // groups, layer.weight.shape[1], -1)


def _scale_input(layer: Layer, by: Tensor) -> None:
    _by_input(layer).mul_(by.view(layer.groups, 1, -1, 1))


def _channels_in(layer: Layer) -> int:
    return layer.groups * layer.weight.shape[1]


def _has_channels_second(layer: Layer) -> bool:
    """Whether dimension 1 of its input and output holds the channels: not for one image, nor for a list of vectors."""
    return layer.node.meta["val"].dim() == layer.weight.dim()


def _way(simulation: Simulation, node: Node) -> list[Node]:
    """From a layer to the one that alone reads it, which comes last; empty if not all between is homogeneous."""
    layers, way = {layer.node for layer in simulation.layers}, []
    while len(node.users) == 1:
        user = next(iter(node.users))
        way.append(user)
        if user in layers:
            return way if user.args[0] is node else []
        if not _is_homogeneous(user) and simulation.rounding(user) is None:
            return []
        node = user
    return []


def _is_homogeneous(node: Node) -> bool:
    """Whether f(s x) = s f(x) for a scale of each index of dimension 1, which stays where it is."""
    if _cap(node) is not None:
        return True
    if node.target not in _HOMOGENEOUS and not pads_zeros(node):
        return False
    named, rank = arguments(node), _before_rounding(node.args[0]).meta["val"].dim()
    if node.target is torch.ops.aten.mean.dim:
        return all(dim % rank > 1 for dim in named["dim"] or (0,))
    if node.target is torch.ops.aten.flatten.using_ints:
        return named["start_dim"] % rank > 0
    return node.target in _HOMOGENEOUS or len(named["pad"]) <= 2 * (rank - 2)


def _before_rounding(node: Node) -> Node:
    return node if "val" in node.meta else node.args[0]


def _cap(node: Node) -> float | None:
    """Where a clamp from 0 on ends; None for any other operation."""
    if node.target is torch.ops.aten.relu6.default:
        return 6.0
    if node.target not in (torch.ops.aten.hardtanh.default, torch.ops.aten.hardtanh_.default):
        return None
    lowest, end = (*node.args[1:], *(-1.0, 1.0)[len(node.args) - 1 :])
    return float(end) if lowest == 0 else None
