"""Joint rounding of a layer's weights: the error of one weight is compensated by those that are not rounded yet.

Rounding each weight to the nearest integer makes the weights right, not what they compute: where an input hardly
varies, as behind a saturated ReLU6, the errors of a kernel add up. Here they are rounded one after the other, and the
rest of the row is changed so that the layer's output on calibration images stays what it was: optimal brain
quantization, in the order of the weights (arXiv 2208.11580, 2210.17323).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from repnets.quantization.simulation import LIMIT, Layer, Rounding, Simulation

_DAMPING = 0.01  # of the mean of the inputs' squares, added to each: what was never seen must not be trusted
_LARGEST = 4096  # weights of an output channel; the matrix of a layer has so many rows and columns
_PLACES = 128  # of an image that a kernel is looked at, about


def second_moments(simulation: Simulation, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """The inputs of each layer, times each other, in the float network.

    Args:
        simulation: Its layers' inputs are looked at.
        batches: Calibration images, float32 (n, 3, H, W).

    Returns:
        By the name of a layer float64 (groups, K, K), where K is the weights of an output channel; the sum over places
        and images of x x^T for what a kernel reads. Without the layers whose K is above 4096.
    """
    found: dict[str, Tensor] = {}
    readers: dict[Rounding, list[Layer]] = {}
    for layer in simulation.layers:
        if layer.weight_rounding.axis == 0 and layer.weight[0].numel() <= _LARGEST:
            readers.setdefault(layer.input_rounding, []).append(layer)

    def add(x: Tensor, layers: list[Layer]) -> None:
        for layer in layers:
            columns = _columns(layer, x)
            new = torch.bmm(columns, columns.transpose(1, 2)).double()
            found[layer.name] = found[layer.name] + new if layer.name in found else new

    simulation.show(batches, {rounding: partial(add, layers=layers) for rounding, layers in readers.items()})
    return found


def round_together(simulation: Simulation, moments: dict[str, Tensor]) -> int:
    """Put the weights of layers onto the steps of their scales, in place.

    Args:
        simulation: With its scales set; they stay.
        moments: From `second_moments`.

    Returns:
        How many layers were rounded.
    """
    with torch.no_grad():
        for layer in simulation.layers:
            if layer.name in moments:
                layer.weight.copy_(_rounded(layer, moments[layer.name]))
    return len(moments)


def _columns(layer: Layer, x: Tensor) -> Tensor:
    """What the kernels read, float32 (groups, K, places)."""
    if layer.weight.dim() == 2:
        return x.reshape(-1, x.shape[-1]).T[None]
    stride, padding, dilation = (_pair(layer, place, default) for place, default in ((3, 1), (4, 0), (5, 1)))
    chosen = []
    for image in x.split(1):  # all patches of one image at a time: those of a batch can be gigabytes
        patches = functional.unfold(image, layer.weight.shape[2:], dilation=dilation, padding=padding, stride=stride)
        chosen.append(patches[:, :, :: max(1, patches.shape[2] // _PLACES)])
    return torch.cat(chosen).unflatten(1, (layer.groups, -1)).permute(1, 2, 0, 3).flatten(2)


def _pair(layer: Layer, place: int, default: int) -> list[int]:
    args = layer.node.args
    return list(args[place]) if len(args) > place else [default, default]


def _rounded(layer: Layer, moments: Tensor) -> Tensor:
    groups, size = moments.shape[:2]
    weight = layer.weight.detach().double().view(groups, -1, size)
    scale = layer.weight_rounding.scale.double().view(groups, -1)
    diagonal = moments.diagonal(dim1=1, dim2=2)
    damped = moments + torch.diag_embed(_DAMPING * diagonal.mean(1, keepdim=True).expand(-1, size).clamp_min(1e-30))
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    rest, done = weight.clone(), torch.empty_like(weight)
    for place in range(size):
        own = rest[:, :, place]
        done[:, :, place] = (own / scale).round().clamp(-LIMIT, LIMIT) * scale
        lost = (own - done[:, :, place]) / upper[:, None, place, place]
        rest[:, :, place + 1 :] -= lost[..., None] * upper[:, None, place, place + 1 :]
    return done.view_as(layer.weight).float()
