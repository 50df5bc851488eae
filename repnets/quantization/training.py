"""Quantization-aware training: in int8, learn the float network's logits (arXiv 1712.05877, 1503.02531)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from repnets.quantization.ranges import set_weights
from repnets.quantization.simulation import Simulation


def distil(simulation: Simulation, batches: Iterable[Tensor], steps: int, learning_rate: float) -> Iterator[float]:
    """Train weights and biases, in place; scales of activations stay, those of weights follow the weights.

    Stochastic gradient descent with momentum 0.9 and a cosine schedule, against the float network as it is now; no
    label is needed. Consume all that it yields.

    Args:
        simulation: With its scales set.
        batches: float32 (n, 3, H, W), of training images, as many as there are steps.
        steps: How many batches come, for the schedule.
        learning_rate: The first.

    Yields:
        The loss of each step: Kullback-Leibler divergence from the float network's classes, nats.
    """
    teacher = Simulation(copy.deepcopy(simulation.module))
    trained = [one for layer in simulation.layers for one in (layer.weight, layer.bias) if one is not None]
    for one in trained:
        one.requires_grad_(True)
    optimizer = torch.optim.SGD(trained, learning_rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for batch in batches:
        with torch.no_grad(), teacher.as_float():
            want = teacher(batch).log_softmax(1)
        set_weights(simulation, "max")
        loss = functional.kl_div(simulation(batch).log_softmax(1), want, reduction="batchmean", log_target=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        yield float(loss)
    for one in trained:
        one.requires_grad_(False)
    set_weights(simulation, "max")
