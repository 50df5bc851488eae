"""Multi-branch blocks, in training form only: `repnets.fuse` makes single convolutions of them.

All take and give float tensors of shape (N, channels, H, W).
"""

from torch import Tensor, nn


class ConvBN(nn.Module):
    """A convolution without bias and its batch norm, no nonlinearity."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate of the channels' means (arXiv 1709.01507): (N, C, H, W) to the same.

    Args:
        channels: C.
        reduced_channels: Width of the layer between; C // 16 in RepVGG and MobileOne.
    """

    def __init__(self, channels: int, reduced_channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, reduced_channels, 1)
        self.expand = nn.Conv2d(reduced_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = self.reduce(x.mean((2, 3), keepdim=True)).relu()
        return x * self.expand(squeezed).sigmoid()


class RepVGGBlock(nn.Module):
    """ReLU of a dense convolution plus a 1x1 convolution plus the identity (arXiv 2101.03697, figure 2).

    Each branch ends in a batch norm; the identity branch is there where it can be, that is where
    `in_channels == out_channels` and `stride == 1`.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Of both convolutions. Default 1.
        groups: Of both convolutions. Default 1.
        kernel_size: Of the dense convolution, odd; it is padded to keep the size. Default 3.
        use_se: Gate the sum by a `SqueezeExcite` of width `out_channels // 16`, before the ReLU.
            Default False.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        groups: int = 1,
        kernel_size: int = 3,
        use_se: bool = False,
    ) -> None:
        super().__init__()
        self.dense = ConvBN(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups)
        self.pointwise = ConvBN(in_channels, out_channels, 1, stride, groups=groups)
        self.identity = nn.BatchNorm2d(in_channels) if in_channels == out_channels and stride == 1 else None
        self.se = SqueezeExcite(out_channels, out_channels // 16) if use_se else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.dense(x) + self.pointwise(x)
        if self.identity is not None:
            y = y + self.identity(x)
        if self.se is not None:
            y = self.se(y)
        return y.relu()


class MobileOneBlock(nn.Module):
    """ReLU of k equal convolutions plus a 1x1 "scale" convolution plus the identity.

    See arXiv 2206.04040, figure 3. Each branch ends in a batch norm. The scale branch is there for kernels
    larger than 1x1, the skip branch where `in_channels == out_channels` and `stride == 1`.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Of the equal convolutions, odd; they are padded to keep the size.
        stride: Of all convolutions. Default 1.
        groups: Of all convolutions; `in_channels` for the depthwise block. Default 1.
        branches: k, the number of equal convolutions. Default 1.
        use_se: Gate the sum by a `SqueezeExcite` of width `out_channels // 16`, before the ReLU.
            Default False.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        branches: int = 1,
        use_se: bool = False,
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            ConvBN(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups) for _ in range(branches)
        )
        self.scale = ConvBN(in_channels, out_channels, 1, stride, groups=groups) if kernel_size > 1 else None
        self.skip = nn.BatchNorm2d(in_channels) if in_channels == out_channels and stride == 1 else None
        self.se = SqueezeExcite(out_channels, out_channels // 16) if use_se else None

    def forward(self, x: Tensor) -> Tensor:
        first, *others = [*self.convs, self.scale, self.skip]
        y = first(x)
        for branch in others:
            if branch is not None:
                y = y + branch(x)
        if self.se is not None:
            y = self.se(y)
        return y.relu()
