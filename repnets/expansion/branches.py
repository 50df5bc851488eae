"""Linear branches that stand beside a convolution for training, for any rank, stride, padding, dilation and groups.

A branch takes what the convolution takes and gives a tensor of the shape that it gives. Its taps lie on the
convolution's own taps, so `repnets.fuse` adds its kernel to the convolution's. Each ends in a batch norm.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repnets.networks.blocks import PaddingBatchNorm

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
CONVOLUTIONS: dict[type, int] = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
_CONV = {rank: kind for kind, rank in CONVOLUTIONS.items()}
_BATCH_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_AVERAGE_POOL = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


def batch_norm(conv: Conv) -> nn.Module:
    """A batch norm for what a convolution gives."""
    return _BATCH_NORM[len(conv.kernel_size)](conv.out_channels)


def pads(conv: Conv) -> tuple[int, ...]:
    """Zeros at either end of each axis, also of `padding="same"` and `"valid"`, for odd kernels."""
    if isinstance(conv.padding, str):
        same = conv.padding == "same"
        return tuple(d * (k // 2) if same else 0 for k, d in zip(conv.kernel_size, conv.dilation, strict=True))
    return tuple(conv.padding)


def is_depthwise(conv: Conv) -> bool:
    """Whether each channel is computed of itself alone."""
    return conv.groups == conv.in_channels == conv.out_channels


class Frame(nn.Module):
    """Zeros around the image, or a crop of it where an amount is negative.

    Args:
        amounts: Positions at either end of each axis, from the first axis after the channels.
    """

    def __init__(self, amounts: tuple[int, ...]) -> None:
        super().__init__()
        self.amounts = tuple(amounts)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, [amount for one in reversed(self.amounts) for amount in (one, one)])


def same(conv: Conv) -> nn.Module:
    """A convolution of the same geometry (MobileOne, arXiv 2206.04040)."""
    return _conv_bn(conv, conv.kernel_size)


def pointwise(conv: Conv) -> nn.Module | None:
    """A 1x1 convolution on the middle tap (RepVGG, arXiv 2101.03697); None beside a convolution that is 1x1 itself."""
    return None if max(conv.kernel_size) == 1 else _conv_bn(conv, (1,) * len(conv.kernel_size))


def identity(conv: Conv) -> nn.Module | None:
    """The input itself, through a batch norm (RepVGG); None where the convolution changes stride or channels."""
    if conv.in_channels != conv.out_channels or max(conv.stride) > 1:
        return None
    frame = tuple(p - d * (k // 2) for p, d, k in zip(pads(conv), conv.dilation, conv.kernel_size, strict=True))
    bn = batch_norm(conv)
    return nn.Sequential(OrderedDict(frame=Frame(frame), bn=bn)) if any(frame) else nn.Sequential(OrderedDict(bn=bn))


def line(conv: Conv, axis: int) -> nn.Module | None:
    """A convolution along one axis (ACNet, arXiv 1908.03930); None where that is the convolution itself."""
    if axis >= len(conv.kernel_size) or conv.kernel_size[axis] == 1:
        return None
    kernel = tuple(k if at == axis else 1 for at, k in enumerate(conv.kernel_size))
    return None if kernel == tuple(conv.kernel_size) else _conv_bn(conv, kernel)


def sequence(conv: Conv) -> nn.Module:
    """1x1, then the convolution's own geometry (DBB, arXiv 2103.13425, section 3.3).

    The 1x1 is the identity at first. A depthwise one doubles the channels, as DBB's authors have it.
    """
    rank, channels = len(conv.kernel_size), conv.in_channels
    inner = 2 * channels if is_depthwise(conv) else channels
    first = _CONV[rank](channels, inner, 1, groups=conv.groups, bias=False)
    nn.init.dirac_(first.weight, conv.groups)
    kernel = _CONV[rank](
        inner, conv.out_channels, conv.kernel_size, conv.stride, 0, conv.dilation, conv.groups, bias=False
    )
    return nn.Sequential(
        OrderedDict(pointwise=first, pad=PaddingBatchNorm(inner, pads(conv)), kernel=kernel, bn=batch_norm(conv))
    )


def average(conv: Conv) -> nn.Module | None:
    """1x1, then average pooling over the kernel's window (DBB); None with dilation, which no pooling has."""
    if max(conv.dilation) > 1:
        return None
    rank = len(conv.kernel_size)
    pool, bn = _AVERAGE_POOL[rank], batch_norm(conv)
    if is_depthwise(conv):
        frame = Frame(pads(conv))
        return nn.Sequential(OrderedDict(frame=frame, pool=pool(conv.kernel_size, conv.stride), bn=bn))
    first = _CONV[rank](conv.in_channels, conv.out_channels, 1, groups=conv.groups, bias=False)
    pad = PaddingBatchNorm(conv.out_channels, pads(conv))
    return nn.Sequential(OrderedDict(pointwise=first, pad=pad, pool=pool(conv.kernel_size, conv.stride), bn=bn))


def _conv_bn(conv: Conv, kernel: tuple[int, ...]) -> nn.Module:
    """A convolution without bias whose middle tap lies on the middle tap of another one, and its batch norm."""
    sizes = zip(pads(conv), conv.dilation, conv.kernel_size, kernel, strict=True)
    around = tuple(p - d * (k // 2) + d * (own // 2) for p, d, k, own in sizes)
    made = _CONV[len(kernel)](
        conv.in_channels,
        conv.out_channels,
        kernel,
        conv.stride,
        tuple(max(one, 0) for one in around),
        conv.dilation,
        conv.groups,
        bias=False,
    )
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if min(around) < 0:
        parts["frame"] = Frame(tuple(min(one, 0) for one in around))
    return nn.Sequential(OrderedDict(**parts, conv=made, bn=batch_norm(conv)))


def require_unread(name: str) -> None:
    """Say how to go on to whoever reads the weight of a convolution that was expanded."""
    if name in ("weight", "bias"):
        raise AttributeError(
            f"This network reads the `{name}` of a convolution itself, and an expanded one has none. Leave that "
            "convolution as it is: repnets.expand(model, style, leave=[its name])."
        )


class OnlineKernel(nn.Module):
    """A convolution whose kernel is a sum of kernels, put together at every step (OREPA, arXiv 2204.00826).

    No map is convolved more than once, so training costs little more than with the plain kernel. The kernels are the
    convolution's own; 1x1; 1x1 of an average; 1x1 of fixed cosines, along the first axis for the even output channels
    and along the last for the odd ones; 1x1 then k x k; and k x k a channel then 1x1. Each is scaled by a factor an
    output channel.

    Args:
        conv: What it stands for; its kernel, bias and geometry are taken.
        factor: Of the kernels that are added, at first; 0 leaves the function as it is.
    """

    def __init__(self, conv: Conv, factor: float) -> None:
        super().__init__()
        out, inner, *window = conv.weight.shape
        self.conv = conv
        self.factors = nn.Parameter(torch.full((5, out), factor))
        self.points = nn.Parameter(torch.empty(4, out, inner))
        self.before = nn.Parameter(torch.empty(conv.in_channels, inner))
        self.after = nn.Parameter(torch.empty_like(conv.weight))
        self.channels = nn.Parameter(torch.empty(conv.in_channels, *window))
        for weights in (*self.points, self.before, self.after.flatten(1), self.channels.flatten(1)):
            nn.init.kaiming_uniform_(weights, a=5**0.5)
        self.register_buffer("cosines", _cosines(out, window), persistent=False)

    def __getattr__(self, name: str) -> object:
        require_unread(name)
        return super().__getattr__(name)

    def kernel(self) -> Tensor:
        """The sum, of the shape of the convolution's weight."""
        weight, groups = self.conv.weight, self.conv.groups
        out, inner = weight.shape[:2]
        taps = weight[0, 0].numel()
        a_group = (groups, out // groups, inner)
        after, before = self.after.view(*a_group, taps), self.before.view(groups, inner, inner)
        own = self.channels.view(groups, 1, inner, taps)
        added = (
            F.pad(self.points[0, ..., None], (taps // 2, taps // 2)),
            self.points[1, ..., None] / taps,
            self.points[2, ..., None] * self.cosines,
            torch.einsum("gomt,gmi->goit", after, before).reshape(out, inner, taps),
            (self.points[3].view(*a_group, 1) * own).reshape(out, inner, taps),
        )
        kernel = weight.view(out, inner, taps)
        for number, one in enumerate(added):
            kernel = kernel + self.factors[number, :, None, None] * one
        return kernel.view_as(weight)

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(conv.kernel_size) - 1]
        return convolve(x, self.kernel(), conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def _cosines(channels: int, window: list[int]) -> Tensor:
    """A wave for each output channel, (channels, 1, taps): frequencies from low to high, two directions in turn."""
    order = torch.arange(channels)
    frequency = ((order // 2 + 1) / 2).view(-1, *(1,) * len(window))

    def along(axis: int) -> Tensor:
        at = torch.arange(window[axis]).view(-1, *(1,) * (len(window) - 1 - axis))
        return torch.cos(torch.pi * frequency * (at + 0.5) / window[axis])

    even = (order % 2 == 0).view(-1, *(1,) * len(window))
    return torch.where(even, along(0), along(-1 + len(window))).expand(channels, *window).reshape(channels, 1, -1)
