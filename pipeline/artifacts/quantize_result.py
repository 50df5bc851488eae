"""quantize.json: how the int8 program was made, and what it lost."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pipeline.artifacts.metric import Metric, shown


@dataclass(frozen=True)
class Rounding:
    """How numbers become integers.

    Attributes:
        dtype, symmetric: of the integers, and whether zero is in the middle of their range.
        granularity: what has a scale of its own: ``output channel`` or ``tensor``.
        range: how the range was taken.
    """

    dtype: str
    symmetric: bool
    granularity: str
    range: str


@dataclass(frozen=True)
class Scheme:
    """How weights and activations become integers."""

    weights: Rounding
    activations: Rounding


@dataclass(frozen=True)
class Calibration:
    """The images that ranges were taken from.

    Attributes:
        images: how many.
        part: of the split.
        augmented: whether they were.
        digest: sha256 of their values.
    """

    images: int
    part: str
    augmented: bool
    digest: str


@dataclass(frozen=True)
class QuantizedAccuracy:
    """The score of both programs on the validation images: see `ProvedAccuracy`."""

    fused: float
    quantized: float
    metric: Metric = "top-1"


@dataclass(frozen=True)
class Step:
    """What one step of the repair did.

    Attributes:
        name: of the step.
        how: what it settled on, in words.
        error: of the logits on the calibration images: mean squared, of their variance.
        accuracy: the score on the validation images.
        kept: False where it was taken back, since it did not help, or was for comparison alone.
    """

    name: str
    how: str
    error: float
    accuracy: float
    kept: bool

    def told(self, metric: Metric) -> str:
        """It in a line."""
        end = "" if self.kept else "; not kept"
        return f"{self.name} ({self.how}): error {self.error:.2e}, then {shown(self.accuracy, metric)}{end}"


@dataclass(frozen=True)
class FloatLayer:
    """A layer that stayed in float, and why."""

    layer: str
    reason: str


@dataclass(frozen=True)
class InFloat:
    """What stayed in float.

    Attributes:
        layers: by choice.
        operations: that the quantizer does not know, and how many of each.
    """

    layers: tuple[FloatLayer, ...]
    operations: Mapping[str, int]


@dataclass(frozen=True)
class QuantizeResult:
    """What quantize.json says.

    Attributes:
        status: ``lost`` for a candidate of `precision: auto` that does not hold its gate.
        reason: why it was lost.
        subjects: sha256 of fused.pt2, verify.json, the split and quantized.pt2; see `artifacts.evidence`.
        scheme, calibration: how.
        accuracy: what it came to.
        steps: of the repair, in their order.
        layers: in int8, by name.
        in_float: the others.
        sensitivity: of each layer, what it alone in int8 does to the logits, of their variance; the worst first.
        lineage: of quantized.pt2.
        versions: of the packages that made it.
    """

    TITLE: ClassVar[str] = "result of quantizing"
    STAGE: ClassVar[str] = "quantize"
    SCHEMA: ClassVar[int] = 1

    status: Literal["ok", "lost"]
    reason: str | None
    subjects: Mapping[str, str]
    scheme: Scheme
    calibration: Calibration
    accuracy: QuantizedAccuracy
    steps: tuple[Step, ...]
    layers: tuple[str, ...]
    in_float: InFloat
    sensitivity: Mapping[str, float]
    lineage: Mapping[str, Any]
    versions: Mapping[str, str | None]
