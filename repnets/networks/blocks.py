"""Multi-branch blocks, in training form only: `repnets.fuse` makes single convolutions of them.

All take and give float tensors of shape (N, channels, H, W).
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvBN(nn.Module):
    """A convolution without bias and its batch norm, no nonlinearity."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
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


class QARepVGGBlock(nn.Module):
    """RepVGG's block, made to keep its accuracy in 8 bits (arXiv 2212.01593): ReLU of a batch norm of the sum.

    The dense convolution alone has a batch norm of its own; the 1x1 convolution and the identity have none. So
    no branch can put an outlier on the centre of the fused kernel, and the batch norm after the sum holds the
    activations in range.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Of both convolutions. Default 1.
        groups: Of both convolutions. Default 1.
        kernel_size: Of the dense convolution, odd; it is padded to keep the size. Default 3.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, groups: int = 1, kernel_size: int = 3
    ) -> None:
        super().__init__()
        self.dense = ConvBN(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, stride, groups=groups, bias=False)
        self.has_identity = in_channels == out_channels and stride == 1
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.dense(x) + self.pointwise(x)
        if self.has_identity:
            y = y + x
        return self.bn(y).relu()


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


class DiverseBranchBlock(nn.Module):
    """Four branches that stand where a convolution and its batch norm stood (DBB, arXiv 2103.13425, section 3.3).

    They are k x k; 1x1; 1x1 then k x k; and 1x1 then average pooling. Each convolution and the pooling have a
    batch norm after them, and there is no nonlinearity. A depthwise block has no 1x1 branch and nothing before
    its pooling, which then counts the padding's zeros; its 1x1 before the k x k doubles the channels, as its
    authors' has it.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: k, odd and more than 1; the input is padded to keep the size.
        stride: Of the block. Default 1.
        groups: Of all convolutions; `in_channels`, if `out_channels` is the same, for the depthwise block.
            Default 1.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        padding = kernel_size // 2
        depthwise = groups == in_channels == out_channels
        self.dense = ConvBN(in_channels, out_channels, kernel_size, stride, padding, groups)
        if depthwise:
            inner = 2 * in_channels
            first = nn.Conv2d(in_channels, inner, 1, groups=groups, bias=False)
            self.pointwise = None
            self.average = nn.Sequential(
                OrderedDict(pool=nn.AvgPool2d(kernel_size, stride, padding), bn=nn.BatchNorm2d(out_channels))
            )
        else:
            inner = in_channels
            first = ResidualPointwise(in_channels, groups)
            self.pointwise = ConvBN(in_channels, out_channels, 1, stride, groups=groups)
            self.average = nn.Sequential(
                OrderedDict(
                    pointwise=nn.Conv2d(in_channels, out_channels, 1, groups=groups, bias=False),
                    pad=PaddingBatchNorm(out_channels, (padding, padding)),
                    pool=nn.AvgPool2d(kernel_size, stride),
                    bn=nn.BatchNorm2d(out_channels),
                )
            )
        self.sequence = nn.Sequential(
            OrderedDict(
                pointwise=first,
                pad=PaddingBatchNorm(inner, (padding, padding)),
                dense=ConvBN(inner, out_channels, kernel_size, stride, groups=groups),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.dense(x) + self.sequence(x) + self.average(x)
        return y if self.pointwise is None else y + self.pointwise(x)


class ResidualPointwise(nn.Module):
    """The input plus a 1x1 convolution of it, zero at first: (N, channels, H, W) to the same.

    DBB's authors add the identity to the kernel instead. That is the same function, but runtimes want a kernel
    that is a constant.

    Args:
        channels: Of input and output.
        groups: Of the convolution. Default 1.
    """

    def __init__(self, channels: int, groups: int = 1) -> None:
        super().__init__()
        self.groups = groups
        self.residual = nn.Parameter(torch.zeros(channels, channels // groups, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + F.conv2d(x, self.residual, groups=self.groups)


class PaddingBatchNorm(nn.Module):
    """A batch norm whose output is padded by what it makes of zero: (N, C, H, W) to (N, C, H + 2p, W + 2q).

    What comes after a bias-free 1x1 convolution and this one sees at the border what it would see if the
    convolution's input had been padded with zeros. So 1x1 then k x k is one k x k, at the border too.

    Args:
        channels: C.
        padding: (p, q), positions at either end of each axis; one or three of them for (N, C, L) or (N, C, D, H, W).
    """

    def __init__(self, channels: int, padding: tuple[int, ...]) -> None:
        super().__init__()
        self.padding = tuple(padding)
        self.bn = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[len(self.padding) - 1](channels)

    def forward(self, x: Tensor) -> Tensor:
        bn = self.bn
        y = bn(x)
        # by the running statistics in training as well, and no gradient goes through it, as the authors have it
        of_zero = (bn.bias - bn.running_mean * bn.weight * (bn.running_var + bn.eps).rsqrt()).detach()
        of_zero = of_zero.view(-1, *[1] * len(self.padding))
        return F.pad(y - of_zero, [end for one in reversed(self.padding) for end in (one, one)]) + of_zero


class AsymmetricConvBlock(nn.Module):
    """k x k, 1 x k and k x 1 convolutions, each with its batch norm, summed (ACNet, arXiv 1908.03930).

    It stands where a convolution and its batch norm stood: no nonlinearity.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: k, odd; the input is padded to keep the size.
        stride: Of all convolutions. Default 1.
        groups: Of all convolutions. Default 1.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        k, p = kernel_size, kernel_size // 2
        self.square = ConvBN(in_channels, out_channels, k, stride, p, groups)
        self.horizontal = ConvBN(in_channels, out_channels, (1, k), stride, (0, p), groups)
        self.vertical = ConvBN(in_channels, out_channels, (k, 1), stride, (p, 0), groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.square(x) + self.horizontal(x) + self.vertical(x)


class LargeKernelConv(nn.Module):
    """A large depthwise convolution plus a small one, each with its batch norm (arXiv 2203.06717).

    No nonlinearity.

    Args:
        channels: Of input and output.
        kernel_size: Of the large convolution, odd; both are padded to keep the size.
        small_kernel_size: Of the small one, odd. Default 5.
        stride: Of both. Default 1.
    """

    def __init__(self, channels: int, kernel_size: int, small_kernel_size: int = 5, stride: int = 1) -> None:
        super().__init__()
        self.large, self.small = (
            ConvBN(channels, channels, size, stride, size // 2, groups=channels)
            for size in (kernel_size, small_kernel_size)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.large(x) + self.small(x)


class RepLKBlock(nn.Module):
    """RepLKNet's block (arXiv 2203.06717, figure 4): a large depthwise convolution between two 1x1, and a shortcut.

    Batch norm, 1x1, batch norm, ReLU, `LargeKernelConv`, ReLU, 1x1, batch norm; the input is added to that.

    Args:
        channels: Of input and output.
        kernel_size: Of the large convolution, odd.
        small_kernel_size: Of the small one beside it, odd. Default 5.
        inner_channels: Of the depthwise convolutions. Default: `channels`.
    """

    def __init__(
        self, channels: int, kernel_size: int, small_kernel_size: int = 5, inner_channels: int | None = None
    ) -> None:
        super().__init__()
        inner = channels if inner_channels is None else inner_channels
        self.bn = nn.BatchNorm2d(channels)
        self.expand = ConvBN(channels, inner, 1)
        self.spatial = LargeKernelConv(inner, kernel_size, small_kernel_size)
        self.project = ConvBN(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(self.bn(x)).relu()
        return x + self.project(self.spatial(y).relu())
