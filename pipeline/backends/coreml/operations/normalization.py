"""Normalizations."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def _batch_norm(
    x: "Tensor",
    mean: "Tensor",
    variance: "Tensor",
    gamma: "Tensor | None" = None,
    beta: "Tensor | None" = None,
    epsilon: float = 1e-5,
) -> "Tensor":
    from torch.nn import functional

    return functional.batch_norm(x, mean, variance, gamma, beta, eps=epsilon)


def _normalized(
    x: "Tensor", axes: list[int], shape: list[int], gamma: "Tensor | None", beta: "Tensor | None", epsilon: float
) -> "Tensor":
    """Zero mean and unit variance over axes, then a scale and an offset of a shape that broadcasts."""
    centred = x - x.mean(axes, keepdim=True)
    scaled = centred / ((centred * centred).mean(axes, keepdim=True) + epsilon).sqrt()
    scaled = scaled if gamma is None else scaled * gamma.reshape(shape)
    return scaled if beta is None else scaled + beta.reshape(shape)


def _instance_norm(
    x: "Tensor", gamma: "Tensor | None" = None, beta: "Tensor | None" = None, epsilon: float = 1e-5
) -> "Tensor":
    spatial = list(range(2, x.dim()))
    return _normalized(x, spatial, [-1] + [1] * len(spatial), gamma, beta, epsilon)


def _layer_norm(
    x: "Tensor",
    axes: list[int] | None = None,
    gamma: "Tensor | None" = None,
    beta: "Tensor | None" = None,
    epsilon: float = 1e-5,
) -> "Tensor":
    from torch.nn import functional

    axes = sorted(axis % x.dim() for axis in (range(x.dim()) if axes is None else axes))
    if axes == list(range(x.dim() - len(axes), x.dim())):
        return functional.layer_norm(x, x.shape[-len(axes) :], gamma, beta, epsilon)
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    return _normalized(x, axes, shape, gamma, beta, epsilon)


def _l2_norm(x: "Tensor", epsilon: float = 1e-6) -> "Tensor":
    return x / ((x * x).sum([-3, -2, -1], keepdim=True) + epsilon).sqrt()


def _local_response_norm(x: "Tensor", size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> "Tensor":
    from torch.nn import functional

    return functional.local_response_norm(x, size, alpha, beta, k)


OPERATIONS = {
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "l2_norm": _l2_norm,
    "layer_norm": _layer_norm,
    "local_response_norm": _local_response_norm,
}
