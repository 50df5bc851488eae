"""Operations that pick numbers by their place."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def _slice_by_index(
    x: "Tensor",
    begin: list[int],
    end: list[int],
    stride: list[int] | None = None,
    begin_mask: list[bool] | None = None,
    end_mask: list[bool] | None = None,
    squeeze_mask: list[bool] | None = None,
) -> "Tensor":
    x, squeezed = _window(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    return x.squeeze(squeezed) if squeezed else x


def _window(
    x: "Tensor",
    begin: list[int],
    end: list[int],
    stride: list[int] | None,
    begin_mask: list[bool] | None,
    end_mask: list[bool] | None,
    squeeze_mask: list[bool] | None,
) -> "tuple[Tensor, list[int]]":
    """A view of the part that is meant, rank kept, and the axes to squeeze; a copy where a stride is negative."""
    import torch

    none = [False] * x.dim()
    squeezed = [axis for axis, is_squeezed in enumerate(squeeze_mask or none) if is_squeezed]
    for axis in range(x.dim()):
        step = (stride or [1] * x.dim())[axis]
        first = None if (begin_mask or none)[axis] else begin[axis]
        last = None if (end_mask or none)[axis] else end[axis]
        if axis in squeezed:
            x = x.narrow(axis, begin[axis] % x.shape[axis], 1)
        elif step > 0:
            x = x[(slice(None),) * axis + (slice(first, last, step),)]
        else:
            x = x.index_select(axis, torch.tensor(range(*slice(first, last, step).indices(x.shape[axis]))))
    return x, squeezed


def _slice_by_size(x: "Tensor", begin: list[int], size: list[int]) -> "Tensor":
    for axis, (first, count) in enumerate(zip(begin, size, strict=True)):
        x = x.narrow(axis, first, x.shape[axis] - first if count == -1 else count)
    return x


def _slice_update(
    x: "Tensor",
    update: "Tensor",
    begin: list[int],
    end: list[int],
    stride: list[int] | None = None,
    begin_mask: list[bool] | None = None,
    end_mask: list[bool] | None = None,
    squeeze_mask: list[bool] | None = None,
) -> "Tensor":
    if any(step < 0 for step in stride or []):
        raise NotImplementedError("a negative stride of a slice_update")
    changed = x.clone()
    part, _ = _window(changed, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    part.copy_(update.reshape(part.shape))
    return changed


def _gather(
    x: "Tensor", indices: "Tensor", axis: int = 0, batch_dims: int = 0, validate_indices: bool = False
) -> "Tensor":
    import torch

    axis %= x.dim()
    if batch_dims:
        rest = (axis - 1, batch_dims - 1)
        return torch.stack([_gather(one, place, *rest) for one, place in zip(x, indices, strict=True)])
    places = _from_the_start(indices, x.shape[axis])
    return (
        x.index_select(axis, places.flatten()).unflatten(axis, places.shape)
        if places.dim()
        else x.select(axis, int(places))
    )


def _gather_along_axis(x: "Tensor", indices: "Tensor", axis: int = 0, validate_indices: bool = False) -> "Tensor":
    return x.gather(axis, _from_the_start(indices, x.shape[axis]))


def _gather_nd(x: "Tensor", indices: "Tensor", batch_dims: int = 0, validate_indices: bool = False) -> "Tensor":
    import torch

    if batch_dims:
        pairs = zip(x, indices, strict=True)
        return torch.stack([_gather_nd(one, place, batch_dims - 1) for one, place in pairs])
    return x[tuple(indices.long().unbind(-1))]


def _scattering(gather: "Callable[..., Tensor]") -> "Callable[..., Tensor]":
    """What writes to the places that an operation would gather along an axis."""

    def scatter(
        data: "Tensor",
        indices: "Tensor",
        updates: "Tensor",
        axis: int = 0,
        mode: str = "add",
        validate_indices: bool = False,
    ) -> "Tensor":
        return _put(data, gather(_places(data), indices, axis), updates, mode)

    return scatter


def _scatter_nd(
    data: "Tensor", indices: "Tensor", updates: "Tensor", mode: str = "add", validate_indices: bool = False
) -> "Tensor":
    return _put(data, _gather_nd(_places(data), indices), updates, mode)


def _places(data: "Tensor") -> "Tensor":
    """The place of each number in the flat tensor: gathering what is to be written gives where."""
    import torch

    return torch.arange(data.numel()).view(data.shape)


def _put(data: "Tensor", places: "Tensor", updates: "Tensor", mode: str) -> "Tensor":
    flat, places, updates = data.flatten(), places.flatten(), updates.flatten()
    if mode == "update":
        return flat.scatter(0, places, updates).view(data.shape)
    if mode in ("sub", "div"):
        mode, updates = ("add", -updates) if mode == "sub" else ("mul", 1 / updates)
    how = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}[mode]
    return flat.scatter_reduce(0, places, updates, how).view(data.shape)


def _from_the_start(indices: "Tensor", size: int) -> "Tensor":
    indices = indices.long()
    return indices + size * (indices < 0)


def _one_hot(
    indices: "Tensor",
    one_hot_vector_size: int,
    axis: int = -1,
    on_value: "Tensor | None" = None,
    off_value: "Tensor | None" = None,
) -> "Tensor":
    import torch

    on = torch.tensor(1, dtype=torch.int32) if on_value is None else on_value
    off = torch.zeros_like(on) if off_value is None else off_value
    hot = indices.unsqueeze(-1) == torch.arange(one_hot_vector_size)
    return on.where(hot, off).movedim(-1, axis)


def _band_part(x: "Tensor", lower: int = -1, upper: int = -1) -> "Tensor":
    x = x.tril(upper) if upper >= 0 else x
    return x.triu(-lower) if lower >= 0 else x


OPERATIONS = {
    "band_part": _band_part,
    "gather": _gather,
    "gather_along_axis": _gather_along_axis,
    "gather_nd": _gather_nd,
    "one_hot": _one_hot,
    "scatter": _scattering(_gather),
    "scatter_along_axis": _scattering(_gather_along_axis),
    "scatter_nd": _scatter_nd,
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "slice_update": _slice_update,
}
