"""ResNet-18 (arXiv 1512.03385), its 3x3 convolutions plain or in branches."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from repnets.networks.blocks import AsymmetricConvBlock, ConvBN, DiverseBranchBlock
from repnets.networks.heads import Classifier, init_weights

_WIDTHS = (64, 128, 256, 512)
_CONVOLUTIONS = {
    "plain": partial(ConvBN, kernel_size=3, padding=1),
    "diverse": partial(DiverseBranchBlock, kernel_size=3),
    "asymmetric": partial(AsymmetricConvBlock, kernel_size=3),
}


def build(num_classes: int, convolution: str = "plain", in_channels: int = 3) -> nn.Sequential:
    """`stem`, `stage1` to `stage4` of two basic blocks each, and `head`.

    Args:
        num_classes: Width of the head.
        convolution: What the 3x3 convolutions of the basic blocks are: "plain", "diverse" (DBB, arXiv
            2103.13425) or "asymmetric" (ACNet, arXiv 1908.03930). Default "plain".
        in_channels: Of the image. Default 3.
    """
    make_convolution = _CONVOLUTIONS[convolution]
    channels = _WIDTHS[0]
    stem = nn.Sequential(
        ConvBN(in_channels, channels, 7, stride=2, padding=3), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)
    )
    stages = OrderedDict(stem=stem)
    for number, width in enumerate(_WIDTHS, start=1):
        stages[f"stage{number}"] = nn.Sequential(
            BasicBlock(channels, width, 1 if number == 1 else 2, make_convolution),
            BasicBlock(width, width, 1, make_convolution),
        )
        channels = width
    model = nn.Sequential(OrderedDict(**stages, head=Classifier(channels, num_classes)))
    init_weights(model)
    return model


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, 1x1 where the shape changes (arXiv 1512.03385, figure 5, left).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Of the first convolution and the shortcut.
        make_convolution: Called with channels in, channels out and `stride`: makes a 3x3 convolution and its
            batch norm, or what stands for them.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        make_convolution: Callable[..., nn.Module],
    ) -> None:
        super().__init__()
        self.first = make_convolution(in_channels, out_channels, stride=stride)
        self.second = make_convolution(out_channels, out_channels)
        same = in_channels == out_channels and stride == 1
        self.shortcut = None if same else ConvBN(in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x).relu())
        return (y + (x if self.shortcut is None else self.shortcut(x))).relu()
