"""One class an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.artifacts.metric import TOP_1
from pipeline.tasks.base import alone

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Classification:
    """Logits (N, classes); cross-entropy and top-1.

    Attributes:
        labels: name of each class.
        label_smoothing: of the loss (arXiv 1512.00567).
    """

    labels: tuple[str, ...]
    label_smoothing: float = 0.0
    name = "classification"
    metric = TOP_1
    targets = "label"

    def require(self, outputs: "Sequence[Tensor]", size: tuple[int, int], scale: int) -> None:
        """Logits, one a class."""
        logits = alone(outputs, 2, f"logits (2, {len(self.labels)})")
        if logits.shape[1] != len(self.labels):
            raise ValueError(f"it tells {logits.shape[1]} classes apart, and the data set has {len(self.labels)}")

    def loss(self, outputs: "Sequence[Tensor]", targets: "Tensor") -> "Tensor":
        """Cross-entropy, of (N, classes) and int64 (N,)."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs[0], targets, label_smoothing=self.label_smoothing)

    def score(self, outputs: "Sequence[Tensor]", targets: "Tensor") -> float:
        """Share of the images whose largest logit is that of their class."""
        return float((outputs[0].argmax(1) == targets).double().mean())

    def agreement(self, outputs: "Sequence[Tensor]", others: "Sequence[Tensor]") -> float:
        """Share of the images with the same class."""
        return self.score(outputs, others[0].argmax(1))

    def decode(self, outputs: "Sequence[Tensor]") -> list[str]:
        """The name of the class."""
        return [self.labels[number] for number in outputs[0].argmax(1).tolist()]

    def draw(self, picture: "Tensor", decoded: str) -> "Tensor":
        """The name, written in the upper left corner of a frame."""
        import torch
        from torchvision.utils import draw_bounding_boxes

        height, width = picture.shape[-2:]
        return draw_bounding_boxes(picture, torch.tensor([[0.0, 0.0, width - 1, height - 1]]), [decoded], colors="red")
