"""RepShuffleNetV2: ShuffleNetV2 (arXiv 1807.11164) with one RepVGG block in place of each branch of its units."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from repnets.networks.blocks import ConvBN, RepVGGBlock
from repnets.networks.heads import Classifier, init_weights

_UNITS = (4, 8, 4)


def build(num_classes: int, widths: tuple[int, int, int, int, int], in_channels: int = 3) -> nn.Sequential:
    """`stem`, `stage2` to `stage4` of 4, 8 and 4 units, `last` and `head`.

    Args:
        num_classes: Width of the head.
        widths: Channels of the stem, of stages 2 to 4 (even), and of the 1x1 convolution before the head.
        in_channels: Of the image. Default 3.
    """
    channels, *stage_widths, last = widths
    stem = nn.Sequential(
        ConvBN(in_channels, channels, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)
    )
    stages = OrderedDict(stem=stem)
    for number, (units, width) in enumerate(zip(_UNITS, stage_widths, strict=True), start=2):
        stages[f"stage{number}"] = nn.Sequential(
            HalvingUnit(channels, width), *(ShuffleUnit(width) for _ in range(units - 1))
        )
        channels = width
    stages["last"] = nn.Sequential(ConvBN(channels, last, 1), nn.ReLU())
    model = nn.Sequential(OrderedDict(**stages, head=Classifier(last, num_classes)))
    init_weights(model)
    return model


class ShuffleUnit(nn.Module):
    """One half of the channels through a block, the other past it, interleaved: (N, channels, H, W) to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = RepVGGBlock(channels // 2, channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        past, through = x.chunk(2, dim=1)
        return _interleave(past, self.block(through))


class HalvingUnit(nn.Module):
    """The whole input through two blocks of stride 2, interleaved: (N, in_channels, H, W) to half the size.

    The first block gives half of `out_channels`, as in ShuffleNetV2.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.left = RepVGGBlock(in_channels, out_channels // 2, stride=2)
        self.right = RepVGGBlock(in_channels, out_channels // 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return _interleave(self.left(x), self.right(x))


def _interleave(a: Tensor, b: Tensor) -> Tensor:
    """Channels of a and b in turn: concatenation and a channel shuffle of two groups."""
    return torch.cat([a, b], dim=1).unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
