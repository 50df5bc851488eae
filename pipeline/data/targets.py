"""What is known of an image, brought to the network's input as the image is: masks, boxes, pictures.

The kinds, their shapes and units are those of `pipeline.tasks.base.Targets`.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.artifacts.manifest import Preprocessing
from pipeline.data import transforms
from pipeline.tasks.base import IGNORED, Targets

if TYPE_CHECKING:
    import torch

_LEAST = 1.0  # pixel: a box of which less is left is none


def fitted(
    kind: Targets, targets: "torch.Tensor", pixels: "torch.Tensor", preprocessing: Preprocessing, scale: int = 1
) -> "torch.Tensor":
    """Targets of images as they are, as those of the network's input.

    Args:
        kind: of the targets.
        targets: of the images: masks and boxes in their pixels; pictures (n, 3, H, W) of any size, or something else,
            and then the image itself is what the network is to give.
        pixels: the images, uint8 (n, 1 or 3, H, W).
        preprocessing: how they become the input.
        scale: how many times as large as the input what it is to give is.
    """
    if kind == "mask":
        return _masks(targets, preprocessing)
    if kind == "boxes":
        return _boxes(targets, pixels.shape[-2:], preprocessing)
    if kind == "picture":
        height, width = preprocessing.size
        wanted = targets if targets.dim() == 4 else pixels
        return transforms.resized(wanted, replace(preprocessing, image_size=(scale * height, scale * width)))
    return targets


@dataclass(frozen=True)
class View:
    """Images as they are, and their targets, as a network takes and is to give them: float32 images in [0, 1]."""

    preprocessing: Preprocessing
    kind: Targets
    scale: int

    def __call__(self, pixels: "torch.Tensor", wanted: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
        return (
            transforms.resized(pixels, self.preprocessing),
            fitted(self.kind, wanted, pixels, self.preprocessing, self.scale),
        )


def mirrored(kind: Targets, targets: "torch.Tensor", flip: "torch.Tensor", width: int) -> "torch.Tensor":
    """The targets of images of which some are mirrored, left for right.

    Args:
        kind: of the targets.
        targets: of the network's input.
        flip: bool (n,), whether an image is mirrored.
        width: of the input, pixels.
    """
    import torch

    if kind == "label":
        return targets
    if kind == "boxes":
        label, x1, y1, x2, y2 = targets.unbind(-1)
        there = flip[:, None] & (label >= 0)
        left, right = torch.where(there, width - x2, x1), torch.where(there, width - x1, x2)
        return torch.stack([label, left, y1, right, y2], -1)
    return torch.where(flip.view(-1, *[1] * (targets.dim() - 1)), targets.flip(-1), targets)


def _masks(masks: "torch.Tensor", preprocessing: Preprocessing) -> "torch.Tensor":
    """(n, H, W) as (n, height, width): by the nearest pixel, and `IGNORED` where the image has been padded."""
    import torch

    scaled = transforms.scaled_size(masks.shape[-2:], preprocessing)
    channels = masks[:, None].to(torch.uint8)
    if scaled != tuple(masks.shape[-2:]):
        channels = torch.nn.functional.interpolate(channels, scaled, mode="nearest-exact")
    return transforms.placed(channels, preprocessing.size, IGNORED)[:, 0].to(torch.int64)


def _boxes(boxes: "torch.Tensor", size: "torch.Size", preprocessing: Preprocessing) -> "torch.Tensor":
    """(n, most, 5) scaled, moved and cut at the input's border; those of which nothing is left are taken away."""
    import torch

    (high, wide), (height, width) = transforms.scaled_size(size, preprocessing), preprocessing.size
    top, left = transforms.offset(high, height), transforms.offset(wide, width)
    label, x1, y1, x2, y2 = boxes.float().unbind(-1)
    x1, x2 = ((x * (wide / size[1]) + left).clamp(0, width) for x in (x1, x2))
    y1, y2 = ((y * (high / size[0]) + top).clamp(0, height) for y in (y1, y2))
    is_left = (label >= 0) & (x2 - x1 >= _LEAST) & (y2 - y1 >= _LEAST)
    found = torch.stack([label, x1, y1, x2, y2], -1)
    return torch.where(is_left[..., None], found, found.new_tensor([-1.0, 0, 0, 0, 0]))
