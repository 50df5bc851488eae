"""Which layers lose most in int8: each alone is made int8, and the logits are compared."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from repnets.quantization.simulation import Simulation, error


def sensitivities(simulation: Simulation, batches: Sequence[Tensor], want: Tensor) -> dict[str, float]:
    """What each layer by itself, its weight and its input in int8 and the rest in float32, does to the logits.

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
