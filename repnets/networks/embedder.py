"""Embedders: the stages of a classifier, and a vector of length one for each image."""

from collections import OrderedDict

from torch import Tensor, nn

from repnets.networks import repvgg, toy
from repnets.networks.heads import init_weights

_BACKBONES = {"repvgg": repvgg.make_stages, "toy": toy.make_stages}


def build(num_classes: int, backbone: str, width: int, in_channels: int = 3, **settings: object) -> nn.Sequential:
    """The backbone's stages and `head`.

    Args:
        num_classes: Not used: an embedder has no classes.
        backbone: The family whose stages make the features: "repvgg" or "toy".
        width: Of the vector.
        in_channels: Of the image. Default 3.
        settings: Of the backbone's `make_stages`.
    """
    stages, widths = _BACKBONES[backbone](in_channels=in_channels, **settings)
    model = nn.Sequential(OrderedDict(**stages, head=Embedding(widths[-1], width)))
    init_weights(model)
    return model


class Embedding(nn.Module):
    """Mean over the image, a linear layer, and division by the length: (N, in_channels, H, W) to (N, width).

    The batch norm (the neck of arXiv 1903.07071) takes off what all images have in common: without it all vectors begin
    so near to each other that no loss of angles moves them.

    The square of the length is at least 1e-12, so that an image of zeros gives zeros.
    """

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, width)
        self.bn = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.linear(x.mean((2, 3))))
        return y * (y.square().sum(1, keepdim=True) + 1e-12).rsqrt()
