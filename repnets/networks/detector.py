"""An anchor-free one-stage detector in the manner of YOLOv6 (arXiv 2209.02976): EfficientRep, Rep-PAN, decoupled heads.

Three things differ: every activation is a ReLU, the neck enlarges to the nearest position in place of a transposed
convolution, and boxes are four plain numbers, without a distribution.
"""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repnets.networks.blocks import ConvBN, RepVGGBlock
from repnets.networks.heads import init_weights
from repnets.networks.pyramid import FeatureMaps

_PRIOR = 0.01  # what each class is given at first, at every position


def build(
    num_classes: int,
    widths: tuple[int, ...],
    depths: tuple[int, ...],
    neck_widths: tuple[int, int, int, int, int, int],
    neck_depth: int,
    in_channels: int = 3,
) -> "Detector":
    """`backbone`, `neck` and `heads`.

    Args:
        num_classes: Of the objects.
        widths: Channels of the stem and of each stage; each halves the size, and the last three are read.
        depths: Blocks of each stage after the one that halves the size.
        neck_widths: Channels of the neck: two on the way up to the finest level, then two for each step down, for what
            is carried down and what the level gives. The finest level gives the second.
        neck_depth: Blocks of each of the neck's four stages.
        in_channels: Of the image. Default 3.
    """
    stages = OrderedDict(stem=RepVGGBlock(in_channels, widths[0], stride=2))
    for number, (own, width, depth) in enumerate(zip(widths[:-1], widths[1:], depths, strict=True), start=1):
        stages[f"stage{number}"] = nn.Sequential(RepVGGBlock(own, width, stride=2), *_row(width, width, depth))
    stages[f"stage{len(depths)}"].append(SpatialPyramid(widths[-1]))
    neck = RepPAN(widths[-3:], neck_widths, neck_depth)
    model = Detector(FeatureMaps(stages, 3), neck, num_classes)
    init_weights(model)
    for head in model.heads:
        head.start()
    return model


class Detector(nn.Module):
    """(N, C, H, W), both sizes multiples of the largest stride, to raw boxes and classes of each level, finest first.

    For a level of stride s it gives `boxes_s`, (N, 4, H / s, W / s): of the position's middle, the distances to the
    left, top, right and bottom side in strides, before the softplus; and `classes_s`, (N, num_classes, H / s, W / s):
    logits, each class by itself.

    Args:
        backbone: Gives three maps, finest first.
        neck: Makes three maps of them.
        num_classes: Of the objects.
    """

    def __init__(self, backbone: FeatureMaps, neck: "RepPAN", num_classes: int) -> None:
        super().__init__()
        self.backbone, self.neck = backbone, neck
        self.heads = nn.ModuleList(DecoupledHead(width, num_classes) for width in neck.channels)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = {}
        maps = self.neck(self.backbone(x))
        for stride, head, one in zip(self.backbone.strides, self.heads, maps, strict=True):
            found[f"boxes_{stride}"], found[f"classes_{stride}"] = head(one)
        return found


class RepPAN(nn.Module):
    """Three maps, finest first, to three of the same sizes: coarse to fine and back (arXiv 2209.02976, figure 3).

    Args:
        channels: Of the maps.
        widths: Two on the way to the finest level, then two for each step back: what is carried, and what is given.
        depth: Blocks of each of the four stages.

    Attributes:
        channels: Of the maps given.
    """

    def __init__(self, channels: tuple[int, int, int], widths: tuple[int, ...], depth: int) -> None:
        super().__init__()
        fine, middle, coarse = channels
        up1, up2, down2, out2, down1, out1 = widths
        self.channels = (up2, out2, out1)
        self.reduce1, self.reduce2 = _conv(coarse, up1), _conv(up1, up2)
        self.up1 = nn.Sequential(*_row(middle + up1, up1, depth))
        self.up2 = nn.Sequential(*_row(fine + up2, up2, depth))
        self.halve2, self.halve1 = _conv(up2, down2, 3, 2), _conv(out2, down1, 3, 2)
        self.down2 = nn.Sequential(*_row(down2 + up2, out2, depth))
        self.down1 = nn.Sequential(*_row(down1 + up1, out1, depth))

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        fine, middle, coarse = maps
        carried1 = self.reduce1(coarse)
        carried2 = self.reduce2(self.up1(torch.cat([_doubled(carried1), middle], 1)))
        first = self.up2(torch.cat([_doubled(carried2), fine], 1))
        second = self.down2(torch.cat([self.halve2(first), carried2], 1))
        return first, second, self.down1(torch.cat([self.halve1(second), carried1], 1))


class DecoupledHead(nn.Module):
    """A 1x1 convolution, then one 3x3 and a last 1x1 for boxes and for classes: (N, width, h, w) to raw outputs.

    Args:
        width: Channels of the map and between.
        num_classes: Of the objects.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.stem = _conv(width, width)
        self.of_boxes, self.of_classes = _conv(width, width, 3), _conv(width, width, 3)
        self.boxes, self.classes = nn.Conv2d(width, 4, 1), nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        return self.boxes(self.of_boxes(x)), self.classes(self.of_classes(x))

    def start(self) -> None:
        """Small weights, boxes of about 2.6 strides, and every class as good as absent, in place."""
        for last in (self.boxes, self.classes):
            nn.init.normal_(last.weight, std=0.01)
        nn.init.ones_(self.boxes.bias)
        nn.init.constant_(self.classes.bias, -math.log(1 / _PRIOR - 1))


class SpatialPyramid(nn.Module):
    """SPPF: a map beside its maxima over 5, 9 and 13 positions, between two 1x1 convolutions; the channels stay."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = _conv(channels, channels // 2)
        self.join = _conv(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.reduce(x)]
        for _ in range(3):
            maps.append(F.max_pool2d(maps[-1], 5, stride=1, padding=2))
        return self.join(torch.cat(maps, 1))


def _conv(in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1) -> nn.Sequential:
    """A convolution that keeps or halves the size, its batch norm and a ReLU."""
    return nn.Sequential(ConvBN(in_channels, out_channels, kernel_size, stride, kernel_size // 2), nn.ReLU())


def _row(in_channels: int, out_channels: int, depth: int) -> list[nn.Module]:
    """Blocks in a row, all of one width."""
    widths = [in_channels, *[out_channels] * depth]
    return [RepVGGBlock(own, out_channels) for own in widths[:-1]]


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")
