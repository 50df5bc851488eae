"""The fused network for weights that were folded elsewhere."""

import torch
from torch import nn

from repnets.fusion.engine import fuse
from repnets.networks import MODELS, create_model


def fused_network(arch: str, num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """The fused network of an architecture, with weights that mean nothing: load your own.

    It is what `fuse` makes of the network, so a checkpoint that was folded elsewhere runs, exports and is fused
    again (to itself) like one that was folded here. `repnets.checkpoints.layouts.block_names` of its state dict's keys
    gives the name in the deploy layout for each.

    Args:
        arch: One of `repnets.list_models()`.
        num_classes: Width of the last layer. Default 1000.
        in_channels: Channels of the image. Default 3.

    Returns:
        A module in eval mode, as `FuseResult.module`.

    Raises:
        RepnetsError: As for `create_model`.
    """
    model = create_model(arch, num_classes, in_channels).eval()
    size = 2 * MODELS[arch].min_image_size  # at the smallest, the last feature map is one pixel
    return fuse(model, torch.zeros(1, in_channels, size, size)).module
