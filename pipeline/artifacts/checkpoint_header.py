"""The header of a checkpoint: which network its weights are of, and how images become the network's input."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pipeline.artifacts.manifest import Preprocessing


@dataclass(frozen=True, kw_only=True)
class CheckpointHeader:
    """What the header of a checkpoint says.

    Attributes:
        arch, num_classes: of the network.
        preprocessing: that it was trained with.
        data_digest: of the split that it was trained or adopted with.
        epoch: the last one; None where it is not known.
        weights: ``raw`` or ``ema``.
        form: ``deploy`` for the weights of a fused network.
        seed: of the training; left out where it is not known.
        metrics: by name; ``val_accuracy`` is top-1 on the validation images.
        adopted_from: sha256 of the file that it was read from; left out for a network that was trained here.
        processes: that trained it together, each with batch norms of its own on CPUs; left out for one.
        recalibrated: ``images``, and ``from``, the sha256 of the checkpoint before; left out without `recalibrate`.
    """

    TITLE: ClassVar[str] = "header of a checkpoint"
    STAGE: ClassVar[str] = "train"
    SCHEMA: ClassVar[int] = 1

    arch: str
    num_classes: int
    preprocessing: Preprocessing
    data_digest: str
    epoch: int | None
    weights: Literal["raw", "ema"]
    form: Literal["training", "deploy"] = "training"
    seed: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    adopted_from: str | None = None
    processes: int | None = None
    recalibrated: Mapping[str, Any] | None = None

    @property
    def is_folded(self) -> bool:
        """Whether the weights are of a fused network, so that there is no branched one."""
        return self.form == "deploy"
