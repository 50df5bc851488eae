"""The feature maps of a row of stages, for networks that read more than the last."""

from collections import OrderedDict

from torch import Tensor, nn


class FeatureMaps(nn.Module):
    """Stages in a row: (N, C, H, W) to the maps of the last few, finest first.

    Args:
        stages: By name, first to last. Each halves height and width.
        levels: How many of the last stages give their map.

    Attributes:
        strides: Pixels of the image a position, of each map given.
    """

    def __init__(self, stages: OrderedDict[str, nn.Module], levels: int) -> None:
        super().__init__()
        self.stages = nn.ModuleDict(stages)
        self.strides = tuple(2**number for number in range(1, len(stages) + 1))[-levels:]

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages.values():
            x = stage(x)
            maps.append(x)
        return maps[-len(self.strides) :]
