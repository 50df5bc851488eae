"""The smallest network that has all of RepVGG: three blocks, one with an identity branch."""

from collections import OrderedDict

from torch import nn

from repnets.networks.blocks import RepVGGBlock
from repnets.networks.heads import Classifier, init_weights


def build(num_classes: int, in_channels: int = 3) -> nn.Sequential:
    """`stage1` to `stage3` and `head`; a fused one runs in well under a millisecond at 96 x 96."""
    model = nn.Sequential(
        OrderedDict(
            stage1=RepVGGBlock(in_channels, 64, stride=2),
            stage2=RepVGGBlock(64, 128, stride=2),
            stage3=RepVGGBlock(128, 128),
            head=Classifier(128, num_classes),
        )
    )
    init_weights(model)
    return model
