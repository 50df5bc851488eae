"""Segmenters: the maps of a classifier's stages, summed from coarse to fine, and a class for each pixel.

The head is the top-down half of a feature pyramid (arXiv 1612.03144) of one width, with a single map at the end, as in
the semantic branch of panoptic FPN (arXiv 1901.02446): there each level is upsampled by itself, here level by level.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from repnets.networks import mobileone, repvgg
from repnets.networks.blocks import ConvBN, RepVGGBlock
from repnets.networks.heads import init_weights
from repnets.networks.pyramid import FeatureMaps

_BACKBONES = {"repvgg": repvgg.make_stages, "mobileone": mobileone.make_stages}


def build(
    num_classes: int, backbone: str, levels: int, width: int, in_channels: int = 3, **settings: object
) -> "Segmenter":
    """`backbone`, `laterals`, `smooth` and `classify`.

    Args:
        num_classes: Channels of the output; the background, if there is one, is one of them.
        backbone: The family whose stages make the maps: "repvgg" or "mobileone".
        levels: How many of its last stages are read. The finest decides the size of the map before it is enlarged.
        width: Channels of the head.
        in_channels: Of the image. Default 3.
        settings: Of the backbone's `make_stages`.
    """
    stages, widths = _BACKBONES[backbone](in_channels=in_channels, **settings)
    model = Segmenter(FeatureMaps(stages, levels), widths[-levels:], width, num_classes)
    init_weights(model)
    return model


class Segmenter(nn.Module):
    """(N, C, H, W), both sizes multiples of the backbone's stride, to logits (N, num_classes, H, W).

    The last enlargement is bilinear and by a fixed factor, so that every runtime takes it.

    Args:
        backbone: Gives maps, finest first.
        channels: Of each map.
        width: Channels of the head.
        num_classes: Channels of the output.
    """

    def __init__(self, backbone: FeatureMaps, channels: list[int], width: int, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.laterals = nn.ModuleList(ConvBN(own, width, 1) for own in channels)
        self.smooth = RepVGGBlock(width, width)
        self.classify = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        *finer, y = [lateral(one) for lateral, one in zip(self.laterals, self.backbone(x), strict=True)]
        for one in reversed(finer):
            y = F.interpolate(y.relu(), scale_factor=2, mode="nearest") + one
        y = self.classify(self.smooth(y.relu()))
        return F.interpolate(y, scale_factor=self.backbone.strides[0], mode="bilinear", align_corners=False)
