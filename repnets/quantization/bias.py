"""Bias correction: the shift of a channel's mean by rounding is subtracted from its bias (arXiv 1906.04721, 4.2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from repnets.quantization.simulation import Simulation


def correct(simulation: Simulation, images: Tensor) -> int:
    """Correct the biases of all layers, in place and in order, each on what the corrected ones before it give.

    Args:
        simulation: With its scales set.
        images: float32 (N, 3, H, W), of the calibration set; all at once.

    Returns:
        How many layers were corrected: one whose weight or bias is read elsewhere too stays as it is.
    """
    layers = {layer.name: layer for layer in simulation.layers if layer.bias is not None and layer.is_alone}
    wanted: dict[str, Tensor] = {}

    def note(node: Node, value: Tensor) -> Tensor:
        wanted[node.name] = _mean(value, layers[node.name].channel_axis)
        return value

    def mend(node: Node, value: Tensor) -> Tensor:
        layer = layers[node.name]
        off = _mean(value, layer.channel_axis) - wanted[node.name]
        layer.bias.sub_(off)
        return (value.movedim(layer.channel_axis, -1) - off).movedim(-1, layer.channel_axis)

    with torch.no_grad():
        with simulation.as_float():
            _run(simulation, images, set(layers), note)
        _run(simulation, images, set(layers), mend)
    return len(layers)


def _run(simulation: Simulation, images: Tensor, names: set[str], act: Callable[[Node, Tensor], Tensor]) -> None:
    """Run the graph node by node; what those of some names give passes through a function, which may change it."""
    interpreter = Interpreter(simulation.module)
    interpreter.args_iter = iter([images])
    for node in simulation.module.graph.nodes:
        value = interpreter.run_node(node)
        interpreter.env[node] = act(node, value) if node.name in names else value
        for done in interpreter.user_to_last_uses.get(node, []):
            del interpreter.env[done]


def _mean(value: Tensor, axis: int) -> Tensor:
    """Of each channel, float32 (C,)."""
    return value.movedim(axis, -1).flatten(0, -2).mean(0)
