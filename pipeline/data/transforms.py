"""What happens to pixels between the image file and the network: resizing, normalising, augmenting.

All of it works on whole batches of tensors, on the device they are on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.artifacts.manifest import GRAY_OF_RGB, LETTERBOX_FILL, Preprocessing

if TYPE_CHECKING:
    import torch


def prepare(pixels: "torch.Tensor", preprocessing: Preprocessing) -> "torch.Tensor":
    """The network's input for images as they are.

    Args:
        pixels: uint8 (n, 1 or 3, H, W).
        preprocessing: the steps.

    Returns:
        float32 (n, C, height, width), contiguous.
    """
    return normalised(resized(pixels, preprocessing), preprocessing).contiguous()


def resized(pixels: "torch.Tensor", preprocessing: Preprocessing) -> "torch.Tensor":
    """uint8 (n, 1 or 3, H, W) as float32 in [0, 1] of the input's height and width, gray where the input is.

    The channels of a colour image are R, G, B in any case; `normalised` puts them in order.
    """
    import torch

    images = pixels.to(torch.float32).div_(255)
    if preprocessing.color_order == "gray" and images.shape[1] == 3:
        images = (images * images.new_tensor(GRAY_OF_RGB).view(1, 3, 1, 1)).sum(1, keepdim=True)
    scaled = scaled_size(images.shape[-2:], preprocessing)
    if scaled != tuple(images.shape[-2:]):
        images = torch.nn.functional.interpolate(
            images, scaled, mode=preprocessing.interpolation, align_corners=False, antialias=True
        )
    return placed(images, preprocessing.size, LETTERBOX_FILL / 255)


def scaled_size(size: Sequence[int], preprocessing: Preprocessing) -> tuple[int, int]:
    """Height and width that an image of some size is resized to, before it is cut or padded."""
    (height, width), (high, wide) = size, preprocessing.size
    if preprocessing.resize == "stretch":
        return high, wide
    is_by_height = high * width >= wide * height  # so that it covers the input
    if preprocessing.resize == "letterbox":
        scale = min(high / height, wide / width)
        return max(1, round(height * scale)), max(1, round(width * scale))
    return (high, int(high * width / height)) if is_by_height else (int(wide * height / width), wide)


def placed(images: "torch.Tensor", size: tuple[int, int], fill: float) -> "torch.Tensor":
    """Cut at the centre what is over, and pad what is missing, so that images have a height and width."""
    import torch

    for axis, wanted in ((-2, size[0]), (-1, size[1])):
        given = images.shape[axis]
        before = offset(given, wanted)
        if given > wanted:
            images = images.narrow(axis, -before, wanted)
        elif given < wanted:
            pads = [before, wanted - given - before]
            images = torch.nn.functional.pad(images, [0, 0, *pads] if axis == -2 else pads, value=fill)
    return images


def offset(given: int, wanted: int) -> int:
    """How many pixels later than before an image begins, along a side that is cut or padded at both ends."""
    return (wanted - given) // 2 if wanted >= given else -round((given - wanted) / 2)


def normalised(images: "torch.Tensor", preprocessing: Preprocessing) -> "torch.Tensor":
    """(n, 1 or 3, H, W), R, G, B in [0, 1], as (n, C, H, W) in the input's order, ``(x - mean) / std`` per channel."""
    if preprocessing.color_order == "BGR":
        images = images.flip(1)
    return _scaled(images, preprocessing)


def _scaled(images: "torch.Tensor", preprocessing: Preprocessing) -> "torch.Tensor":
    mean, std = (images.new_tensor(one).view(1, -1, 1, 1) for one in (preprocessing.mean, preprocessing.std))
    return (images - mean) / std


def whole(images: "torch.Tensor", preprocessing: Preprocessing) -> "torch.Tensor":
    """Normalised images (n, C, H, W) as the nearest that 8-bit pixels can give, so that rounding changes no more."""
    mean, std = (images.double().new_tensor(one).view(1, -1, 1, 1) for one in (preprocessing.mean, preprocessing.std))
    levels = ((images * std + mean) * 255).round().clamp(0, 255)
    return _scaled(levels.float() / 255, preprocessing)


def pixels_of(images: "torch.Tensor", preprocessing: Preprocessing) -> "torch.Tensor":
    """Normalised images (n, C, H, W) as pictures for people: uint8 (n, 3, H, W), R, G, B."""
    import torch

    mean, std = (images.new_tensor(one).view(1, -1, 1, 1) for one in (preprocessing.mean, preprocessing.std))
    levels = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return levels.flip(1) if preprocessing.color_order == "BGR" else levels.expand(-1, 3, -1, -1)


def enlarged(pictures: "torch.Tensor", side: int) -> "torch.Tensor":
    """uint8 (n, 3, H, W) by a whole factor, so that the shorter side has at least so many pixels."""
    factor = -(-side // min(pictures.shape[-2:]))
    return pictures.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def laid_out(images: "torch.Tensor") -> "torch.Tensor":
    """In channels_last order, which convolutions are fastest on."""
    import torch

    return images.contiguous(memory_format=torch.channels_last)


def moves(count: int, size: tuple[int, int], mirror: bool, generator: "torch.Generator") -> tuple["torch.Tensor", ...]:
    """Draw for each image how many pixels it moves up and left, and whether it is flipped."""
    import torch

    reach = min(size) // 16
    down, right = torch.randint(-reach, reach + 1, (2, count), generator=generator)
    return down, right, torch.rand(count, generator=generator) < (0.5 if mirror else 0.0)


def moved(images: "torch.Tensor", down: "torch.Tensor", right: "torch.Tensor", flip: "torch.Tensor") -> "torch.Tensor":
    """Shift each image, its border mirrored into the gap, and flip some: one gather for all."""
    import torch

    rows, columns = (
        _reflected(side, move, images.device) for side, move in zip(images.shape[-2:], (down, right), strict=True)
    )
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    which = torch.arange(len(images), device=images.device)[:, None, None]
    return images[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _reflected(side: int, move: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """(n, side): which row or column comes to each place where image i is moved by ``move[i]``."""
    import torch

    last = side - 1
    return last - (last - (torch.arange(side, device=device) + move[:, None]).abs()).abs()


@dataclass(frozen=True)
class FolderView:
    """One image as training sees it: uint8 (1, 3, H, W) to uint8 (1, 1 or 3, height, width).

    Augmented, it is a random part of at least half the area, or, where it is letterboxed, all of it; some are mirrored.
    """

    preprocessing: Preprocessing
    augment: bool
    mirror: bool

    def __call__(self, pixels: "torch.Tensor", label: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
        from torchvision.transforms import InterpolationMode, v2

        how = self.preprocessing
        interpolation = InterpolationMode(how.interpolation)
        if how.color_order == "gray":
            pixels = v2.functional.rgb_to_grayscale(pixels)
        if self.augment and how.resize != "letterbox":
            crop = v2.RandomResizedCrop(how.size, scale=(0.5, 1.0), interpolation=interpolation, antialias=True)
            pixels = crop(pixels)
        else:
            resize = v2.Resize(scaled_size(pixels.shape[-2:], how), interpolation=interpolation, antialias=True)
            pixels = placed(resize(pixels), how.size, LETTERBOX_FILL)
        if self.augment:
            pixels = v2.RandomHorizontalFlip(0.5 if self.mirror else 0.0)(pixels)
        return pixels, label
