"""Operations that move numbers without changing them, or make new ones from a shape."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def _reshape(x: "Tensor", shape: list[int]) -> "Tensor":
    if 0 in shape and len(shape) == x.dim():
        shape = [wanted or size for wanted, size in zip(shape, x.shape, strict=True)]
    return x.reshape(shape)


def _expand_dims(x: "Tensor", axes: list[int]) -> "Tensor":
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(x: "Tensor", axes: list[int] | None = None) -> "Tensor":
    if axes is None:
        return x.squeeze()
    if any(x.shape[axis] != 1 for axis in axes):
        raise ValueError(f"axes {axes} of a shape of {list(x.shape)} are not all 1")
    return x.squeeze(axes)


def _transpose(x: "Tensor", perm: list[int]) -> "Tensor":
    return x.permute(perm)


def _flatten2d(x: "Tensor", axis: int = 1) -> "Tensor":
    from math import prod

    return x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))


def _concat(values: "list[Tensor]", axis: int, interleave: bool = False) -> "Tensor":
    import torch

    if not interleave:
        return torch.cat(values, axis)
    axis %= values[0].dim()
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)


def _stack(values: "list[Tensor]", axis: int) -> "Tensor":
    import torch

    return torch.stack(values, axis)


def _split(
    x: "Tensor", axis: int, num_splits: int | None = None, split_sizes: list[int] | None = None
) -> "tuple[Tensor, ...]":
    if split_sizes is None:
        if x.shape[axis] % num_splits:
            raise ValueError(f"{x.shape[axis]} cannot be split into {num_splits} equal parts")
        split_sizes = [x.shape[axis] // num_splits] * num_splits
    return x.split(split_sizes, axis)


def _tile(x: "Tensor", reps: list[int]) -> "Tensor":
    return x.repeat(reps)


def _reverse(x: "Tensor", axes: list[int] | None = None) -> "Tensor":
    return x.flip(list(range(x.dim())) if axes is None else axes)


def _pad(x: "Tensor", pad: list[int], mode: str = "constant", constant_val: float = 0.0) -> "Tensor":
    import torch
    from torch.nn import functional

    pads = list(zip(pad[::2], pad[1::2], strict=True))
    if mode == "constant":
        return functional.pad(x, [amount for pair in reversed(pads) for amount in pair], value=constant_val)
    for axis, (before, after) in enumerate(pads, start=x.dim() - len(pads)):
        if before or after:
            last = x.shape[axis] - 1
            taken = torch.arange(-before, last + 1 + after)
            if mode == "reflect":
                taken = last - (last - taken.abs()).abs()
            x = x.index_select(axis, taken.clamp(0, last))
    return x


def _crop(x: "Tensor", crop_height: list[int], crop_width: list[int]) -> "Tensor":
    (top, bottom), (left, right) = crop_height, crop_width
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


def _pixel_shuffle(x: "Tensor", upscale_factor: int) -> "Tensor":
    from torch.nn import functional

    return functional.pixel_shuffle(x, upscale_factor)


def _pixel_unshuffle(x: "Tensor", downscale_factor: int) -> "Tensor":
    from torch.nn import functional

    return functional.pixel_unshuffle(x, downscale_factor)


def _depth_to_space(x: "Tensor", block_size: int) -> "Tensor":
    n, channels, height, width = x.shape
    blocks = x.reshape(n, block_size, block_size, channels // block_size**2, height, width)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(n, -1, height * block_size, width * block_size)


def _space_to_depth(x: "Tensor", block_size: int) -> "Tensor":
    n, channels, height, width = x.shape
    blocks = x.reshape(n, channels, height // block_size, block_size, width // block_size, block_size)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, -1, height // block_size, width // block_size)


def _sliding_windows(x: "Tensor", axis: int, size: int, stride: int = 1) -> "Tensor":
    axis %= x.dim()
    return x.unfold(axis, size, stride).movedim(-1, axis + 1)


def _shape(x: "Tensor") -> "Tensor":
    import torch

    return torch.tensor(x.shape, dtype=torch.int32)


def _fill(shape: list[int], value: "Tensor | None" = None) -> "Tensor":
    import torch

    return torch.zeros(shape) if value is None else value.expand(shape).clone()


def _fill_like(ref_tensor: "Tensor", value: "Tensor | None" = None) -> "Tensor":
    return _fill(list(ref_tensor.shape), value)


def _range_1d(start: "Tensor", end: "Tensor", step: "Tensor") -> "Tensor":
    import torch

    return torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype)


OPERATIONS = {
    "concat": _concat,
    "crop": _crop,
    "depth_to_space": _depth_to_space,
    "expand_dims": _expand_dims,
    "fill": _fill,
    "fill_like": _fill_like,
    "flatten2d": _flatten2d,
    "pad": _pad,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "range_1d": _range_1d,
    "reshape": _reshape,
    "reverse": _reverse,
    "shape": _shape,
    "sliding_windows": _sliding_windows,
    "space_to_depth": _space_to_depth,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": _tile,
    "transpose": _transpose,
}
