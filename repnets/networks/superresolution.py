"""Super-resolution: a row of 3x3 convolutions at the small size, then a pixel shuffle (arXiv 1609.05158).

With edge-oriented blocks it is ECBSR (Zhang, Zeng and Zhang, "Edge-oriented Convolution Block for Real-time Super
Resolution on Mobile Devices", ACM MM 2021, doi 10.1145/3474085.3475291), with plain ones what ECBSR is once fused.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SOBEL = ((1, 0, -1), (2, 0, -2), (1, 0, -1))
_LAPLACE = ((0, 1, 0), (1, -4, 1), (0, 1, 0))
_MASKS = (_SOBEL, tuple(zip(*_SOBEL, strict=True)), _LAPLACE)


def build(
    num_classes: int, depth: int, width: int, factor: int, block: str = "edge", in_channels: int = 3
) -> "SuperResolution":
    """`blocks`, each followed by a PReLU, and `last`.

    Args:
        num_classes: Not used: a picture has no classes.
        depth: Blocks between the first and the last: m in the paper's names, as m4c16.
        width: Channels between them: c there.
        factor: By which height and width grow.
        block: "edge", ECBSR's, or "plain", a 3x3 convolution. Default "edge".
        in_channels: Of the image, and of what is given. Default 3.
    """
    return SuperResolution(in_channels, depth, width, factor, block)


class SuperResolution(nn.Module):
    """(N, channels, H, W) to (N, channels, factor x H, factor x W): the image enlarged to the nearest pixel, corrected.

    It begins with no correction but that of the edge filters, which is small: training starts from the enlarged image.

    Args:
        channels: Of the image.
        depth: Blocks between the first and the last.
        width: Channels between them.
        factor: By which height and width grow.
        block: "edge" or "plain".
    """

    def __init__(self, channels: int, depth: int, width: int, factor: int, block: str) -> None:
        super().__init__()
        make_block = _BLOCKS[block]
        inputs = [channels, *[width] * depth]
        self.factor = factor
        self.blocks = nn.Sequential(*(nn.Sequential(make_block(own, width), nn.PReLU(width)) for own in inputs))
        self.last = make_block(width, channels * factor**2)
        for name, parameter in self.last.named_parameters():
            if name.removeprefix("dense.").removeprefix("squeeze.") in ("weight", "bias"):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        detail = F.pixel_shuffle(self.last(self.blocks(x)), self.factor)
        return detail + F.interpolate(x, scale_factor=self.factor, mode="nearest")


class EdgeBlock(nn.Module):
    """Sum of a 3x3 convolution, a 1x1 then 3x3 one, three edge filters after 1x1 ones, and the identity.

    (N, in_channels, H, W) to (N, out_channels, H, W), without nonlinearity. The edge filters are Sobel's two and
    Laplace's. The identity is there where `in_channels == out_channels`.

    The 1x1 convolutions pad by one position with zeros, so that what they give there is their bias, and the 3x3 ones
    after them do not pad: then two convolutions are one, at the border too.

    Args:
        in_channels: Of the input.
        out_channels: Of the output.
        expansion: Channels between 1x1 and 3x3, as a multiple of `out_channels`. Default 2.
    """

    def __init__(self, in_channels: int, out_channels: int, expansion: int = 2) -> None:
        super().__init__()
        self.dense = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.expand = nn.Conv2d(in_channels, expansion * out_channels, 1, padding=1)
        self.squeeze = nn.Conv2d(expansion * out_channels, out_channels, 3)
        self.edges = nn.ModuleList(EdgeFilter(in_channels, out_channels, mask) for mask in _MASKS)
        self.has_identity = in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.dense(x) + self.squeeze(self.expand(x))
        for edge in self.edges:
            y = y + edge(x)
        return y + x if self.has_identity else y


class EdgeFilter(nn.Module):
    """A 1x1 convolution, then a fixed 3x3 filter of each channel, scaled and shifted: (N, in_channels, H, W) to
    (N, out_channels, H, W).

    Args:
        in_channels: Of the input.
        out_channels: Of the output.
        mask: The filter: three rows of three.
    """

    def __init__(self, in_channels: int, out_channels: int, mask: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, padding=1)
        self.scale = nn.Parameter(1e-3 * torch.randn(out_channels, 1, 1))
        self.bias = nn.Parameter(1e-3 * torch.randn(out_channels, 1, 1))
        self.register_buffer("mask", torch.tensor(mask, dtype=torch.float32).repeat(out_channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        # the scale is applied to the map and not to the filter: runtimes want a filter that is a constant
        return F.conv2d(self.pointwise(x), self.mask, groups=len(self.mask)) * self.scale + self.bias


_BLOCKS = {"edge": EdgeBlock, "plain": partial(nn.Conv2d, kernel_size=3, padding=1)}
