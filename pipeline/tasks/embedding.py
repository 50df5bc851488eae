"""A vector for each image, near to those of its kind: to find what is alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.tasks.base import alone

if TYPE_CHECKING:
    from torch import Tensor

_TEMPERATURE = 0.1


@dataclass(frozen=True)
class Embedding:
    """Vectors (N, D), of which the direction counts; the supervised contrastive loss and recall at 1."""

    name = "embedding"
    metric = "recall@1"
    targets = "label"

    def require(self, outputs: "Sequence[Tensor]", size: tuple[int, int], scale: int) -> None:
        """One vector an image."""
        alone(outputs, 2, "one vector an image, (2, length)")

    def loss(self, outputs: "Sequence[Tensor]", targets: "Tensor") -> "Tensor":
        """Supervised contrastive loss (arXiv 2004.11362, L_out) over the batch, temperature 0.1."""
        import torch

        vectors = _directions(outputs[0])
        others = ~torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
        alike = (targets[:, None] == targets[None]) & others
        likeness = (vectors @ vectors.mT / _TEMPERATURE).masked_fill(~others, -torch.inf)
        log_shares = (likeness - likeness.logsumexp(1, keepdim=True)).masked_fill(~alike, 0.0)
        counts = alike.sum(1)
        return -(log_shares.sum(1) / counts.clamp(min=1)).sum() / (counts > 0).sum().clamp(min=1)

    def score(self, outputs: "Sequence[Tensor]", targets: "Tensor") -> float:
        """Share of the images whose nearest other one, by the cosine, is of their class."""
        return float((targets[_nearest(outputs[0])] == targets).double().mean())

    def agreement(self, outputs: "Sequence[Tensor]", others: "Sequence[Tensor]") -> float:
        """Mean cosine between the two vectors of an image; at least 0."""
        cosines = (_directions(outputs[0]) * _directions(others[0])).sum(1)
        return max(0.0, float(cosines.mean()))

    def decode(self, outputs: "Sequence[Tensor]") -> "list[Tensor]":
        """The vector of length 1."""
        return list(_directions(outputs[0]))

    def draw(self, picture: "Tensor", decoded: "Tensor") -> "Tensor":
        """The picture as it is: a vector cannot be drawn on it."""
        return picture


def _directions(vectors: "Tensor") -> "Tensor":
    from torch.nn.functional import normalize

    return normalize(vectors.flatten(1).float(), dim=1)


def _nearest(vectors: "Tensor") -> "Tensor":
    """int64 (N,): for each the number of the other that is nearest."""
    import torch

    unit = _directions(vectors)
    found = []
    for begin in range(0, len(unit), 1024):
        part = unit[begin : begin + 1024] @ unit.mT
        part[torch.arange(len(part)), torch.arange(begin, begin + len(part))] = -torch.inf
        found.append(part.argmax(1))
    return torch.cat(found)
