"""Quantization-aware training: in int8, learn the float network's logits (arXiv 1712.05877, 1503.02531)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from repnets.quantization.ranges import set_weights
from repnets.quantization.simulation import LIMIT, Layer, Simulation


def distil(
    simulation: Simulation,
    teacher: Callable[[Tensor], Tensor],
    batches: Iterable[Tensor],
    steps: int,
    learning_rate: float,
    classifies: bool = True,
) -> Iterator[float]:
    """Train weights and biases, in place; scales of activations stay, those of weights follow the weights.

    Adam (arXiv 1412.6980) with a cosine schedule; no label is needed. Channels of a fused network can differ in size a
    thousandfold, so what is trained is each weight as a share of the usual size in its row and column. Consume all
    that it yields.

    Args:
        simulation: With its scales set.
        teacher: The float network.
        batches: float32 (n, 3, H, W), of training images, as many as there are steps.
        steps: How many batches come, for the schedule.
        learning_rate: The first: the share of a weight's usual size that a step changes it by.
        classifies: Whether the output is (images, classes).

    Yields:
        The loss of each step: Kullback-Leibler divergence from the float network's classes, nats; of other networks the
        mean squared difference of `simulation.rows`.
    """
    loss_of = _divergence if classifies else functional.mse_loss
    trained = [one for layer in simulation.layers for one in _trained(layer)]
    shares = [nn.Parameter(tensor.detach() / size) for tensor, size in trained]
    optimizer = torch.optim.Adam(shares, learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for tensor, _ in trained:
        tensor.requires_grad_(True)
    for batch in batches:
        with torch.no_grad():
            want = simulation.rows(teacher(batch))
        set_weights(simulation, "max")
        loss = loss_of(simulation.rows(simulation(batch)), want)
        gradients = torch.autograd.grad(loss, [tensor for tensor, _ in trained])
        for share, gradient, (_, size) in zip(shares, gradients, trained, strict=True):
            share.grad = gradient * size
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for share, (tensor, size) in zip(shares, trained, strict=True):
                tensor.copy_(share * size)
        yield float(loss.detach())
    for tensor, _ in trained:
        tensor.requires_grad_(False)
    set_weights(simulation, "max")


def _divergence(got: Tensor, want: Tensor) -> Tensor:
    return functional.kl_div(got.log_softmax(1), want.log_softmax(1), reduction="batchmean", log_target=True)


def _trained(layer: Layer) -> Iterator[tuple[Tensor, Tensor]]:
    """A layer's weight and bias, each with the usual size of its values."""
    square = layer.weight.detach().square().clamp_min(1e-20)
    axis, dims = layer.weight_rounding.axis, range(2, square.dim())
    row, column = (square.mean([one, *dims], keepdim=True) for one in (1 - axis, axis))
    yield layer.weight, (row * column / square.mean()).sqrt()
    if layer.bias is not None:
        yield layer.bias, row.sqrt().flatten() * layer.input_rounding.scale * LIMIT
