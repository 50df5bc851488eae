"""The networks by name. Listing them imports no torch; `create_model` imports what it builds with."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING

from repnets.errors import RepnetsError
from repnets.networks.table import MODELS

if TYPE_CHECKING:
    from torch import nn


def list_models() -> list[str]:
    """Names of all networks, family by family, small to large."""
    return list(MODELS)


def create_model(name: str, num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """A network in training form with random weights, in training mode.

    Args:
        name: One of `list_models()`.
        num_classes: Width of the last layer. Default 1000, as for ImageNet. It is not used, and may be 0, where the
            spec has no classes.
        in_channels: Channels of the image: 3, or 1 of a gray one. Default 3.

    Returns:
        A module that takes (N, in_channels, H, W) float images, H and W at least the spec's `min_image_size`
        and multiples of its `size_step`, and gives what its `task` says: a classifier (N, num_classes) logits.

    Raises:
        RepnetsError: The name is unknown, or `in_channels` is less than 1, or `num_classes` where it is used.
    """
    if name not in MODELS:
        near = get_close_matches(name, MODELS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise RepnetsError(f"There is no network {name!r}.{hint} repnets.list_models() gives all names.")
    spec = MODELS[name]
    if spec.has_classes and num_classes < 1:
        raise RepnetsError(f"{name} needs at least one class, and num_classes is {num_classes}.")
    if in_channels < 1:
        raise RepnetsError(f"An image has at least one channel, and in_channels is {in_channels}.")
    return import_module(f"repnets.networks.{spec.family}").build(
        num_classes=num_classes, in_channels=in_channels, **spec.settings
    )
