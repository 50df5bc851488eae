"""MobileOne (arXiv 2206.04040): pairs of a depthwise 3x3 and a pointwise 1x1 block, in five stages."""

from collections import OrderedDict

from torch import nn

from repnets.networks.blocks import MobileOneBlock
from repnets.networks.heads import Classifier, init_weights

_PAIRS = (2, 8, 10, 1)
_WIDTHS = (64, 128, 256, 512)


def build(
    num_classes: int,
    multipliers: tuple[float, float, float, float],
    branches: int = 1,
    gated_pairs: tuple[int, int, int, int] = (0, 0, 0, 0),
    in_channels: int = 3,
) -> nn.Sequential:
    """`stage0`, `stage1` to `stage4` of depthwise and pointwise blocks in turn, and `head`.

    Args:
        num_classes: Width of the head.
        multipliers: Of the widths 64, 128, 256 and 512 of stages 1 to 4.
        branches: Equal convolutions in each block but stage0, which has one. Default 1.
        gated_pairs: How many pairs, the last of each stage, have squeeze-and-excitation in both blocks.
            Default none.
        in_channels: Of the image. Default 3.
    """
    stages, widths = make_stages(multipliers, branches, gated_pairs, in_channels)
    model = nn.Sequential(OrderedDict(**stages, head=Classifier(widths[-1], num_classes)))
    init_weights(model)
    return model


def make_stages(
    multipliers: tuple[float, float, float, float],
    branches: int = 1,
    gated_pairs: tuple[int, int, int, int] = (0, 0, 0, 0),
    in_channels: int = 3,
) -> tuple[OrderedDict[str, nn.Module], list[int]]:
    """All of the network but its head, with the weights that PyTorch gives; arguments as for `build`.

    Returns:
        The stages by name, stage0 first, and the channels that each gives.
    """
    channels = min(64, int(64 * multipliers[0]))
    widths = [channels]
    stages: OrderedDict[str, nn.Module] = OrderedDict(
        stage0=MobileOneBlock(in_channels, channels, kernel_size=3, stride=2)
    )
    for number, (pairs, width, multiplier, gated) in enumerate(
        zip(_PAIRS, _WIDTHS, multipliers, gated_pairs, strict=True), start=1
    ):
        blocks = []
        for place in range(pairs):
            wide = int(width * multiplier)
            stride = 2 if place == 0 else 1
            use_se = place >= pairs - gated
            blocks += [
                MobileOneBlock(channels, channels, 3, stride, groups=channels, branches=branches, use_se=use_se),
                MobileOneBlock(channels, wide, 1, branches=branches, use_se=use_se),
            ]
            channels = wide
        stages[f"stage{number}"] = nn.Sequential(*blocks)
        widths.append(channels)
    return stages, widths
