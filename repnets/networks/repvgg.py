"""RepVGG (arXiv 2101.03697): a plain stack of 3x3 blocks in five stages, each of which halves the size.

QARepVGG (arXiv 2212.01593) is the same stack of other blocks.
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

from torch import nn

from repnets.networks.blocks import QARepVGGBlock, RepVGGBlock
from repnets.networks.heads import Classifier, init_weights

_WIDTHS = (64, 128, 256, 512)
_BLOCKS = {"plain": RepVGGBlock, "gated": partial(RepVGGBlock, use_se=True), "quantizable": QARepVGGBlock}


def build(
    num_classes: int,
    depths: tuple[int, int, int, int],
    multipliers: tuple[float, float, float, float],
    groups: int = 1,
    block: str = "plain",
    in_channels: int = 3,
) -> nn.Sequential:
    """`stage0`, `stage1` to `stage4` and `head`.

    Args:
        num_classes: Width of the head.
        depths: Blocks of stages 1 to 4.
        multipliers: Of the widths 64, 128, 256 and 512 of stages 1 to 4.
        groups: Groups of every second layer, counted from stage0, which is dense. Default 1.
        block: "plain", "gated" with squeeze-and-excitation, or "quantizable", QARepVGG's. Default "plain".
        in_channels: Of the image. Default 3.
    """
    stages, widths = make_stages(depths, multipliers, groups, block, in_channels)
    model = nn.Sequential(OrderedDict(**stages, head=Classifier(widths[-1], num_classes)))
    init_weights(model)
    return model


def make_stages(
    depths: Sequence[int],
    multipliers: Sequence[float],
    groups: int = 1,
    block: str = "plain",
    in_channels: int = 3,
) -> tuple[OrderedDict[str, nn.Module], list[int]]:
    """All of the network but its head, with the weights that PyTorch gives; arguments as for `build`.

    Fewer than four depths and multipliers leave out the last stages.

    Returns:
        The stages by name, stage0 first, and the channels that each gives.
    """
    make_block = _BLOCKS[block]
    channels = min(64, int(64 * multipliers[0]))
    widths = [channels]
    stages: OrderedDict[str, nn.Module] = OrderedDict(stage0=make_block(in_channels, channels, stride=2))
    layer = 1
    for number, (depth, width, multiplier) in enumerate(
        zip(depths, _WIDTHS[: len(depths)], multipliers, strict=True), start=1
    ):
        blocks = []
        for place in range(depth):
            wide = int(width * multiplier)
            stride = 2 if place == 0 else 1
            own_groups = groups if layer % 2 == 0 else 1
            blocks.append(make_block(channels, wide, stride, own_groups))
            channels = wide
            layer += 1
        stages[f"stage{number}"] = nn.Sequential(*blocks)
        widths.append(channels)
    return stages, widths
