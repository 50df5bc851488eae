"""Cross-layer equalization: move range from the activations between two layers into the weights of the second.

Between two layers with nothing but positively homogeneous operations between them (f(s x) = s f(x) for s > 0: a ReLU, a
mean), channel i of the first may be divided by any s_i > 0 and the second's weights for it multiplied: the network
computes the same (arXiv 1906.04721, section 4.1). An activation has one scale for all its channels, so a channel far
wider than the rest costs them their digits; s_i is chosen as arXiv 2211.10438 does, from the range of the activation
and that of the weights that read it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

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


@dataclass(frozen=True)
class Pair:
    """Two layers with positively homogeneous operations alone between them.

    Attributes:
        first, second: The layers.
        between: The rounding of what the second reads.
    """

    first: Layer
    second: Layer
    between: Rounding


def pairs(simulation: Simulation) -> list[Pair]:
    """The pairs of layers of a network that can be equalized, in order of execution."""
    layers = {layer.node: layer for layer in simulation.layers}
    found = []
    for first in simulation.layers:
        second = layers.get(_reader(simulation, first.node))
        if second is not None and _channels_in(second) == len(first.weight) and not _is_transposed(first):
            found.append(Pair(first, second, second.input_rounding))
    return found


def equalize(simulation: Simulation, seen: dict[Rounding, Seen], share: float) -> int:
    """Scale the channels between each pair of layers, in place; the float network stays the same.

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
            by = _scales(seen[pair.between].by_channel[len(pair.first.weight)], _read(pair.second), share)
            pair.first.weight.div_(by.view(-1, *[1] * (pair.first.weight.dim() - 1)))
            if pair.first.bias is not None:
                pair.first.bias.div_(by)
            _scale_input(pair.second, by)
    return len(found)


def _scales(activation: Tensor, weights: Tensor, share: float) -> Tensor:
    """s_i; 1 for a channel that is never active or never read, and the widest channel keeps its range."""
    alive = (activation > 0) & (weights > 0)
    if not bool(alive.any()):
        return torch.ones_like(activation)
    by = torch.where(alive, activation.pow(share) / weights.clamp_min(1e-30).pow(1 - share), 1.0)
    middle = by[alive].log().mean().exp()
    return torch.where(alive, (by / middle).clamp(1 / _MOST, _MOST), 1.0)


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


def _is_transposed(layer: Layer) -> bool:
    return layer.weight_rounding.axis != 0


def _reader(simulation: Simulation, node: Node) -> Node | None:
    """The layer that alone reads what a node gives, if only homogeneous operations lie between."""
    while len(node.users) == 1:
        user = next(iter(node.users))
        if user in {layer.node for layer in simulation.layers}:
            return user if user.args[0] is node else None
        if user.target not in _HOMOGENEOUS and simulation.rounding(user) is None:
            return None
        node = user
    return None
