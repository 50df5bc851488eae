"""Reductions over axes, and what orders or adds up along one."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def _over_axes(reduce: "Callable[[Tensor, list[int], bool], Tensor]") -> "Callable[..., Tensor]":
    """An operation from a reduction of (x, axes, keep_dims); no axes are all axes."""

    def reduced(x: "Tensor", axes: list[int] | None = None, keep_dims: bool = False) -> "Tensor":
        return reduce(x, list(range(x.dim())) if axes is None else axes, keep_dims)

    return reduced


def _prod(x: "Tensor", axes: list[int], keep_dims: bool) -> "Tensor":
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keep_dims, dtype=x.dtype)
    return x


def _argmax(x: "Tensor", axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> "Tensor":
    return x.argmax(axis, keep_dims)


def _argmin(x: "Tensor", axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> "Tensor":
    return x.argmin(axis, keep_dims)


def _argsort(x: "Tensor", axis: int = -1, ascending: bool = False) -> "Tensor":
    return x.argsort(dim=axis, descending=not ascending, stable=True)


def _topk(
    x: "Tensor",
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> "tuple[Tensor, ...]":
    values, indices = x.topk(k, axis, largest=not ascending, sorted=sort)
    return (values, indices) if return_indices else (values,)


def _cumsum(x: "Tensor", axis: int = 0, exclusive: bool = False, reverse: bool = False) -> "Tensor":
    turned = x.flip(axis) if reverse else x
    total = turned.cumsum(axis, dtype=x.dtype)
    total = total - turned if exclusive else total
    return total.flip(axis) if reverse else total


def _softmax(x: "Tensor", axis: int = -1) -> "Tensor":
    return x.softmax(axis)


OPERATIONS = {
    "argsort": _argsort,
    "cumsum": _cumsum,
    "reduce_argmax": _argmax,
    "reduce_argmin": _argmin,
    "reduce_l1_norm": _over_axes(lambda x, axes, keep: x.abs().sum(axes, keep, dtype=x.dtype)),
    "reduce_l2_norm": _over_axes(lambda x, axes, keep: (x * x).sum(axes, keep).sqrt()),
    "reduce_log_sum": _over_axes(lambda x, axes, keep: x.sum(axes, keep).log()),
    "reduce_log_sum_exp": _over_axes(lambda x, axes, keep: x.logsumexp(axes, keep)),
    "reduce_max": _over_axes(lambda x, axes, keep: x.amax(axes, keep)),
    "reduce_mean": _over_axes(lambda x, axes, keep: x.mean(axes, keep)),
    "reduce_min": _over_axes(lambda x, axes, keep: x.amin(axes, keep)),
    "reduce_prod": _over_axes(_prod),
    "reduce_sum": _over_axes(lambda x, axes, keep: x.sum(axes, keep, dtype=x.dtype)),
    "reduce_sum_square": _over_axes(lambda x, axes, keep: (x * x).sum(axes, keep, dtype=x.dtype)),
    "softmax": _softmax,
    "topk": _topk,
}
