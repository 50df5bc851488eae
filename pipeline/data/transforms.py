"""What happens to pixels between the image file and the network: resizing, normalising, augmenting.

All of it works on whole batches of tensors, on the device they are on.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.artifacts.manifest import Preprocessing

if TYPE_CHECKING:
    import torch


def prepare(pixels: "torch.Tensor", preprocessing: Preprocessing) -> "torch.Tensor":
    """The network's input for images as they are: scaled to [0, 1], resized, cropped, normalised.

    Args:
        pixels: uint8 (n, 1 or 3, H, W).
        preprocessing: size, interpolation, mean and std.

    Returns:
        float32 (n, 3, image_size, image_size), contiguous.
    """
    return normalised(resized(pixels, preprocessing), preprocessing).contiguous()


def resized(pixels: "torch.Tensor", preprocessing: Preprocessing) -> "torch.Tensor":
    """uint8 (n, c, H, W) as float32 in [0, 1], shorter side ``image_size``, cropped at the centre."""
    import torch

    images, size = pixels.to(torch.float32).div_(255), preprocessing.image_size
    height, width = images.shape[-2:]
    short = min(height, width)
    if short != size:
        height, width = int(size * height / short), int(size * width / short)
        images = torch.nn.functional.interpolate(
            images, (height, width), mode=preprocessing.interpolation, align_corners=False, antialias=True
        )
    top, left = round((height - size) / 2), round((width - size) / 2)
    return images[..., top : top + size, left : left + size]


def normalised(images: "torch.Tensor", preprocessing: Preprocessing) -> "torch.Tensor":
    """(n, 1 or 3, H, W) in [0, 1] as (n, 3, H, W) with ``(x - mean) / std`` per channel."""
    mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return (images - mean) / std


def whole(images: "torch.Tensor", preprocessing: Preprocessing) -> "torch.Tensor":
    """Normalised images (n, 3, H, W) as the nearest that 8-bit pixels can give, so that rounding changes no more."""
    mean, std = (images.double().new_tensor(one).view(1, 3, 1, 1) for one in (preprocessing.mean, preprocessing.std))
    levels = ((images * std + mean) * 255).round().clamp(0, 255)
    return normalised(levels.float() / 255, preprocessing)


def laid_out(images: "torch.Tensor") -> "torch.Tensor":
    """In channels_last order, which convolutions are fastest on."""
    import torch

    return images.contiguous(memory_format=torch.channels_last)


def moves(count: int, size: int, mirror: bool, generator: "torch.Generator") -> tuple["torch.Tensor", ...]:
    """Draw for each image how many pixels it moves up and left, and whether it is flipped."""
    import torch

    reach = size // 16
    down, right = torch.randint(-reach, reach + 1, (2, count), generator=generator)
    return down, right, torch.rand(count, generator=generator) < (0.5 if mirror else 0.0)


def moved(images: "torch.Tensor", down: "torch.Tensor", right: "torch.Tensor", flip: "torch.Tensor") -> "torch.Tensor":
    """Shift each image, its border mirrored into the gap, and flip some: one gather for all."""
    import torch

    side = torch.arange(images.shape[-1], device=images.device)
    last = images.shape[-1] - 1
    rows, columns = (last - (last - (side + move[:, None]).abs()).abs() for move in (down, right))
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    which = torch.arange(len(images), device=images.device)[:, None, None]
    return images[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class FolderView:
    """One image as training sees it: uint8 (1, 3, H, W) to uint8 (1, 3, image_size, image_size)."""

    preprocessing: Preprocessing
    augment: bool
    mirror: bool

    def __call__(self, pixels: "torch.Tensor") -> "torch.Tensor":
        from torchvision.transforms import InterpolationMode, v2

        size = self.preprocessing.image_size
        interpolation = InterpolationMode(self.preprocessing.interpolation)
        if self.augment:
            steps = [
                v2.RandomResizedCrop(size, scale=(0.5, 1.0), interpolation=interpolation, antialias=True),
                v2.RandomHorizontalFlip(0.5 if self.mirror else 0.0),
            ]
        else:
            steps = [v2.Resize(size, interpolation=interpolation, antialias=True), v2.CenterCrop(size)]
        return v2.Compose(steps)(pixels)
