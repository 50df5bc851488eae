"""Sensitivity of each layer: it alone is quantized to int8, and the logits are compared."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from repnets.quantization.simulation import Layer, Simulation, error


def sensitivities(simulation: Simulation, batches: Sequence[Tensor], want: Tensor) -> dict[str, float]:
    """The error in the logits if one layer alone, its weight and its input, is in int8 and the rest in float32.

    Args:
        simulation: With its scales set.
        batches: Images of the calibration set.
        want: The float network's logits for them, float32 (images, classes).

    Returns:
        `simulation.error` by the name of the layer's node, the largest first.
    """
    found = {}
    for layer in simulation.layers:
        with simulation.only((layer.weight_rounding, layer.input_rounding)):
            found[layer.name] = error(simulation.logits(batches), want)
    return dict(sorted(found.items(), key=lambda one: -one[1]))


def in_order(
    simulation: Simulation, found: dict[str, float], batches: Sequence[Tensor], want: Tensor, most: int
) -> dict[str, str | None]:
    """The layers in the order in which they are to be kept in float.

    The one that loses most comes first. Where that is its input's doing more than its weight's, the layer that gives
    this input comes next: what it gives is int8 as long as it is.

    Args:
        simulation, batches, want: As for `sensitivities`.
        found: What that gave.
        most: Layers that are asked for.

    Returns:
        By the names of their nodes: that of the layer for whose input one is there, None where it is for itself.
    """
    layers = {layer.name: layer for layer in simulation.layers}
    chosen: dict[str, str | None] = {}
    for name, loss in found.items():
        if len(chosen) >= most:
            break
        chosen.setdefault(name, None)
        giver = _giver(simulation, layers[name])
        if giver is None or giver in chosen:
            continue
        with simulation.only((layers[name].input_rounding,)):
            by_input = error(simulation.logits(batches), want)
        if by_input > loss / 2:
            chosen[giver] = name
    return dict(list(chosen.items())[:most])


def _giver(simulation: Simulation, layer: Layer) -> str | None:
    """The layer whose output another one reads, if only operations on it alone lie between."""
    names, node = {one.node: one.name for one in simulation.layers}, layer.node.args[0]
    while node not in names:
        read = node.all_input_nodes
        if len(read) != 1:
            return None
        (node,) = read
    return names[node]
