"""A class for each pixel."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.tasks.base import IGNORED, alone

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Segmentation:
    """Logits (N, classes, h, w), of the input's size or a part of it; cross-entropy with Dice, and mean IoU.

    Attributes:
        labels: name of each class.
    """

    labels: tuple[str, ...]
    name = "segmentation"
    metric = "mIoU"
    targets = "mask"

    def require(self, outputs: "Sequence[Tensor]", size: tuple[int, int], scale: int) -> None:
        """A map of logits, one a class."""
        logits = alone(outputs, 4, f"one map of logits, (2, {len(self.labels)}, height, width)")
        if logits.shape[1] != len(self.labels):
            raise ValueError(f"its map tells {logits.shape[1]} classes apart, and the data set has {len(self.labels)}")

    def loss(self, outputs: "Sequence[Tensor]", targets: "Tensor") -> "Tensor":
        """Cross-entropy of all pixels that have a class, and the Dice loss (arXiv 1606.04797) of the classes there.

        Cross-entropy alone learns the background first, and small things late.
        """
        import torch
        from torch.nn.functional import cross_entropy, one_hot

        logits, classes = _enlarged(outputs[0], targets.shape[-2:]), len(self.labels)
        told = (targets != IGNORED)[:, None]
        wanted = one_hot(torch.where(targets != IGNORED, targets, 0), classes).movedim(-1, 1) * told
        shares = logits.float().softmax(1) * told
        both, either = ((one.sum((0, 2, 3))) for one in (shares * wanted, shares + wanted))
        there = wanted.sum((0, 2, 3)) > 0
        dice = 1 - ((2 * both / either.clamp(min=1e-6)) * there).sum() / there.sum().clamp(min=1)
        return cross_entropy(logits, targets, ignore_index=IGNORED) + dice

    def score(self, outputs: "Sequence[Tensor]", targets: "Tensor") -> float:
        """Mean over the classes of intersection over union, over all images together.

        A class that is in no mask and is never given does not count.
        """
        from torchmetrics.functional.classification import multiclass_confusion_matrix

        classes = len(self.labels)
        given = _enlarged(outputs[0], targets.shape[-2:]).argmax(1)
        counts = multiclass_confusion_matrix(given, targets.long(), classes, ignore_index=IGNORED).double()
        both, either = counts.diagonal(), counts.sum(0) + counts.sum(1) - counts.diagonal()
        return float((both[either > 0] / either[either > 0]).mean())

    def agreement(self, outputs: "Sequence[Tensor]", others: "Sequence[Tensor]") -> float:
        """Share of the pixels with the same class."""
        return float((outputs[0].argmax(1) == others[0].argmax(1)).double().mean())

    def decode(self, outputs: "Sequence[Tensor]") -> "list[Tensor]":
        """The class of each pixel: int64 (h, w)."""
        return list(outputs[0].argmax(1))

    def draw(self, picture: "Tensor", decoded: "Tensor") -> "Tensor":
        """Each class but the first in a colour of its own over the picture."""
        import torch
        from torch.nn.functional import interpolate
        from torchvision.utils import draw_segmentation_masks

        classes = torch.arange(1, len(self.labels))[:, None, None]
        fitted = interpolate(decoded[None, None].to(torch.uint8), picture.shape[-2:], mode="nearest")[0]
        return draw_segmentation_masks(picture, fitted == classes, alpha=0.6)


def _enlarged(logits: "Tensor", size: Sequence[int]) -> "Tensor":
    from torch.nn.functional import interpolate

    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return interpolate(logits, tuple(size), mode="bilinear", align_corners=False)
