"""Resizing of images. Each mode is a grid: where, in the input, each output pixel is read."""

from math import floor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def _grid(mode: str, size: int, wanted: int) -> "Tensor":
    """Places in [0, size - 1] of ``wanted`` output pixels, float64."""
    import torch

    index = torch.arange(wanted, dtype=torch.float64)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if wanted == 1:
            index = index + ((size - 1) / 2 if mode == "ALIGN_CORNERS" else 0)
        else:
            index = index * (size - 1) / (wanted - 1)
    elif mode == "DEFAULT":
        index = index * size / wanted
    elif mode == "OFFSET_CORNERS":
        index = (index + 0.5) * max(1, size - 1) / wanted
    elif mode == "UNALIGN_CORNERS":
        index = (index + 0.5) * size / wanted - 0.5
    else:
        raise NotImplementedError(f"sampling_mode {mode}")
    return index.clamp(0, size - 1)


def _resampled(x: "Tensor", axis: int, grid: "Tensor", nearest: bool) -> "Tensor":
    if nearest:
        return x.index_select(axis, grid.floor().long())
    low = grid.floor().long()
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    shape = [-1 if index == axis % x.dim() else 1 for index in range(x.dim())]
    part = (grid - low).to(x.dtype).reshape(shape)
    return x.index_select(axis, low) * (1 - part) + x.index_select(axis, high) * part


def _to_size(x: "Tensor", sizes: list[int], mode: str, nearest: bool = False) -> "Tensor":
    """Resize the last dimensions, as many as there are sizes."""
    for axis, wanted in enumerate(sizes, start=x.dim() - len(sizes)):
        if wanted != x.shape[axis] or mode == "OFFSET_CORNERS":  # every other grid of the same size is the input's own
            x = _resampled(x, axis, _grid(mode, x.shape[axis], wanted), nearest)
    return x


def _scaled(x: "Tensor", height: float, width: float) -> list[int]:
    """Sizes of the output; a scale is float32, so 2.6 of 5 pixels falls a little short of 13."""
    return [floor(x.shape[-2] * height * (1 + 1e-6)), floor(x.shape[-1] * width * (1 + 1e-6))]


def _upsample_nearest_neighbor(x: "Tensor", scale_factor_height: float = 1, scale_factor_width: float = 1) -> "Tensor":
    return _to_size(x, _scaled(x, scale_factor_height, scale_factor_width), "DEFAULT", nearest=True)


def _upsample_bilinear(
    x: "Tensor",
    scale_factor_height: float = 1,
    scale_factor_width: float = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> "Tensor":
    centred = not align_corners if half_pixel_centers is None else half_pixel_centers
    if align_corners and centred:
        raise NotImplementedError("align_corners together with half_pixel_centers")
    mode = "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS" if centred else "DEFAULT"
    return _to_size(x, _scaled(x, scale_factor_height, scale_factor_width), mode)


def _resize_nearest_neighbor(x: "Tensor", target_size_height: int, target_size_width: int) -> "Tensor":
    return _to_size(x, [target_size_height, target_size_width], "DEFAULT", nearest=True)


def _resize_bilinear(
    x: "Tensor", target_size_height: int = 1, target_size_width: int = 1, sampling_mode: str = "DEFAULT"
) -> "Tensor":
    return _to_size(x, [target_size_height, target_size_width], sampling_mode)


def _resize(
    x: "Tensor",
    shape: list[int],
    resized_dims: int,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> "Tensor":
    nearest = {"LINEAR": False, "NEAREST_NEIGHBOR": True}[interpolation_mode]
    if nearest and sampling_mode != "DEFAULT":
        raise NotImplementedError(f"NEAREST_NEIGHBOR with sampling_mode {sampling_mode}")
    wanted = shape[len(shape) - resized_dims :]
    sizes = [size or old for size, old in zip(wanted, x.shape[x.dim() - resized_dims :], strict=True)]
    return _to_size(x, sizes, sampling_mode, nearest)


OPERATIONS = {
    "resize": _resize,
    "resize_bilinear": _resize_bilinear,
    "resize_nearest_neighbor": _resize_nearest_neighbor,
    "upsample_bilinear": _upsample_bilinear,
    "upsample_nearest_neighbor": _upsample_nearest_neighbor,
}
