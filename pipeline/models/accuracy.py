"""Top-1 accuracy on the validation images."""

from typing import TYPE_CHECKING

from pipeline.artifacts.manifest import Preprocessing
from pipeline.data.splits import Split

if TYPE_CHECKING:
    from torch import nn


def top1_accuracy(model: "nn.Module", split: Split, preprocessing: Preprocessing, batch_size: int = 256) -> float:
    """Share of the validation images whose class a network in evaluation mode, on the CPU, gets right."""
    import torch

    right = 0
    with torch.inference_mode():
        for images, labels in split.batches("val", preprocessing, batch_size):
            right += int((model(images).argmax(1) == labels).sum())
    return right / split.size("val")
