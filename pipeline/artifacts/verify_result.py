"""verify.json: the proof that the fused network is the branched one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from pipeline.artifacts.manifest import Preprocessing
from pipeline.artifacts.metric import Metric


@dataclass(frozen=True)
class ProvedAccuracy:
    """The score on the validation images, by the metric of the task.

    Attributes:
        branched: None where the network came folded.
        fused: of fused.pt2.
        metric: ``top-1``, ``mIoU`` and the like where it is known what is right. ``agreement`` where the images have no
            labels: with the network as it was trained, in float. ``R2`` is of a network of no task: the share of the
            variance of the float network's outputs that is kept. ``none``: generated images, which tell nothing of real
            ones.
    """

    branched: float | None
    fused: float
    metric: Metric = "top-1"


@dataclass(frozen=True)
class Float64:
    """The fold in float64.

    Attributes:
        tolerance: of the largest logit.
        max_relative_error: by the input's name.
    """

    tolerance: float
    max_relative_error: Mapping[str, float]


@dataclass(frozen=True)
class Weights:
    """The weights of fused.pt2 against the fold of its checkpoint.

    Attributes:
        tolerance: of the layer's largest weight.
        tensors: how many were compared.
        max_relative_error: of all.
    """

    tolerance: float
    tensors: int
    max_relative_error: float


@dataclass(frozen=True)
class FormErrors:
    """How far each form is from the float64 reference, of the largest logit."""

    branched: float
    fused: float


@dataclass(frozen=True)
class Float32:
    """Both forms in float32.

    Attributes:
        slack: times the branched network's error that the fused one may have.
        tolerance: that it may have in any case, of the largest logit.
        relative_error: by the input's name.
        rounding: the largest difference of a logit from the reference.
    """

    slack: float
    tolerance: float
    relative_error: Mapping[str, FormErrors]
    rounding: float

    @property
    def branched_error(self) -> float:
        """The largest error of the branched network, relative to the largest logit."""
        return max(errors.branched for errors in self.relative_error.values())


@dataclass(frozen=True)
class Tie:
    """A validation image whose class differs, its two best logits being as near as rounding goes.

    Attributes:
        image: its index.
        branched, fused: the two classes.
        gap: between the two best logits of the branched network.
    """

    image: int
    branched: int
    fused: int
    gap: float


@dataclass(frozen=True)
class VerifyResult:
    """What verify.json says.

    Attributes:
        subjects: sha256 of checkpoint, split and fused.pt2; see `artifacts.evidence`.
        form: of the checkpoint, ``training`` or ``deploy``.
        preprocessing: that the network was trained and verified with.
        float64, weights, float32: what was compared.
        images: of the validation set.
        accuracy: on them.
        agreement: how alike both forms are by the task; of classes the share of the images with the same.
        ties: the others.
        idempotent: fusing the fused network folds nothing.
    """

    TITLE: ClassVar[str] = "proof of fusing"
    STAGE: ClassVar[str] = "verify"
    SCHEMA: ClassVar[int] = 2

    status: Literal["ok"]
    subjects: Mapping[str, str]
    form: str
    preprocessing: Preprocessing
    float64: Float64
    weights: Weights
    float32: Float32
    images: int
    accuracy: ProvedAccuracy
    agreement: float
    ties: tuple[Tie, ...]
    idempotent: bool
