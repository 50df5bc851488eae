"""The modules that folded regions become: plain layers of torch, two that hold one of them, and one without any."""

import torch
from torch import Tensor, nn

from repnets.fusion import conv_params
from repnets.fusion.affine_conv import AffineConv

CONV_MODULES = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED_MODULES = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


class BorderConv(nn.Module):
    """A convolution, and a second one on a map of ones, which makes up for a bias before a zero padding.

    (N, in_channels, *spatial) to (N, out_channels, *spatial). The second costs as much as one more channel.
    """

    def __init__(self, conv: nn.Module, border: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.border = border

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.border(torch.ones_like(x[:1, :1]))


class PooledLinear(nn.Module):
    """The mean over all positions, and a linear layer: (N, in_channels, *spatial) to (N, out_channels).

    Args:
        linear: The layer.
        trailing: Axes of size 1 to append to the output.
    """

    def __init__(self, linear: nn.Linear, trailing: int) -> None:
        super().__init__()
        self.linear = linear
        self.trailing = trailing

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x.mean(tuple(range(2, x.dim()))))
        return y.reshape(*y.shape, *[1] * self.trailing) if self.trailing else y


class ScaleShift(nn.Module):
    """A factor and a term for each channel.

    Args:
        weight: The factors, with as many axes of size 1 after the channels as the map has.
        bias: The terms, of the same shape.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias


def scale_of(op: AffineConv) -> nn.Module:
    """The float64 module that computes `op`, which is channelwise, without a layer; in eval mode."""
    ones = [1] * len(op.stride)
    return ScaleShift(*(one.reshape(-1, *ones).clone() for one in (op.band.weight(), op.bias))).eval()


def layer_of(op: AffineConv, target_rank: int) -> nn.Module:
    """The float64 module that computes `op`, in eval mode.

    There is a bias even where it is zero, so that the structure depends on the network and not its weights.

    Args:
        op: The operator.
        target_rank: Spatial axes of its output, size 1 each where `op` is pooled.
    """
    weight = conv_params.conv_weight(op)
    if not op.stride:
        linear = nn.Linear(op.in_channels, op.out_channels, device="meta", dtype=torch.float64)
        _set(linear, weight, op.bias)
        return (PooledLinear(linear, target_rank) if op.pooled else linear).eval()
    shape = conv_params.conv_shape(op)
    make = (TRANSPOSED_MODULES if op.transposed else CONV_MODULES)[len(op.stride)]
    settings = {name: value for name, value in vars(shape).items() if value is not None}
    conv = make(**settings, bias=True, device="meta", dtype=torch.float64)
    _set(conv, weight, op.bias)
    if op.border is None:
        return conv.eval()
    settings |= {"in_channels": 1, "groups": 1}
    border = make(**settings, bias=False, device="meta", dtype=torch.float64)
    border.weight = nn.Parameter(conv_params.border_weight(op), requires_grad=False)
    return BorderConv(conv, border).eval()


def _set(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = nn.Parameter(bias.clone(), requires_grad=False)
