"""check.json: the proof that exported files compute what their programs compute."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pipeline.artifacts.metric import Metric
from pipeline.errors import InputError


@dataclass(frozen=True)
class Sample:
    """The validation images that a file was checked on, where `check.images` sets fewer than all.

    Attributes:
        images, of: how many of how many.
        fused: top-1 of fused.pt2 on them, with which that of the file is compared.
    """

    images: int
    of: int
    fused: float


@dataclass(frozen=True)
class FileAccuracy:
    """Top-1 on the validation images.

    Attributes:
        branched: None where the network came folded.
        fused: of fused.pt2.
        file: of the file that ships.
        metric: see `ProvedAccuracy`.
        sample: what `file` was measured on; left out if it was all of them, as for the others.
    """

    branched: float | None
    fused: float
    file: float
    metric: Metric = "top-1"
    sample: Sample | None = None


@dataclass(frozen=True)
class Flip:
    """An image whose best class is another one.

    Attributes:
        image: its index.
        got, want: the two classes.
        margin: by how much the largest logit wanted is above that of the class got, of the largest absolute value of
            all: 0 where the two are equal.
    """

    image: int
    got: int
    want: int
    margin: float


@dataclass(frozen=True)
class GateResult:
    """The result of a gate that passed. Errors are relative to the largest logit.

    Attributes:
        tolerance: of the error.
        max_relative_error: the largest error; None for integers, whose mean error is compared.
        mean_relative_error: the mean over the images; only for integers.
        images: number of images that were compared; left out if these were all.
        rounded_constants: constants other than weights that the file rounds.
        loss_of_fused: the error of fused.pt2 itself in half precision, if the tolerance was derived from it.
        flips: for an int8 file, images whose class differs, with logits as close as the tolerance.
        not_checked: why nothing was compared; everything else is left out then.
    """

    tolerance: float | None = None
    max_relative_error: float | None = None
    mean_relative_error: float | None = None
    images: int | None = None
    rounded_constants: tuple[str, ...] | None = None
    loss_of_fused: float | None = None
    flips: tuple[Flip, ...] | None = None
    not_checked: str | None = None


@dataclass(frozen=True)
class CheckedForm:
    """The file of one form.

    Attributes:
        census: its operations by type, and ``convolution``, ``batch_norm``, ``join``, ``int8`` and ``total``.
        converter: the file against the network that it was made of.
        agreement: how alike both are by the task; of classes the share of the images with the same.
        accuracy: the score of the file.
        precision: what its arithmetic loses; left out where it loses more than is allowed, for a candidate of `auto`.
    """

    census: Mapping[str, int]
    converter: GateResult
    agreement: float
    accuracy: float
    precision: GateResult | None = None


@dataclass(frozen=True)
class CheckResult:
    """What check.json says.

    Attributes:
        status: ``lost`` for a candidate of `precision: auto` that fails a gate.
        reason: why it was lost.
        subjects: sha256 of the files, manifest, programs, verify.json and split; see `artifacts.evidence`.
        checked_by: the runtime.
        images: of the validation set that were checked.
        accuracy: on them.
        forms: by name, as in the manifest.
    """

    TITLE: ClassVar[str] = "result of a check"
    STAGE: ClassVar[str] = "check"
    SCHEMA: ClassVar[int] = 1

    status: Literal["ok", "lost"]
    reason: str | None
    subjects: Mapping[str, str]
    checked_by: str
    images: int
    accuracy: FileAccuracy
    forms: Mapping[str, CheckedForm]

    def require_passed(self, path: Path) -> None:
        """InputError where a gate was lost; `path` is where this was read."""
        if self.status != "ok":
            raise InputError(f"{path} says that the file did not pass its check: {self.reason} It is not used.")
