"""fuse.json: what was folded, which batch norms are out of the ordinary, and what int8 will do."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class BatchNormFinding:
    """As `repnets.batch_norms.Finding`."""

    layer: str
    kind: str
    value: float
    message: str


@dataclass(frozen=True)
class WeightForecast:
    """As `repnets.quantization.forecast.Weight`; None also where a figure is infinite, as in what follows."""

    largest: float
    spread: float | None
    widest: int
    peak: float | None
    snr_db: float | None
    snr_db_per_tensor: float | None
    snr_db_beside_tap: float | None
    snr_db_without_tap: float | None
    tap: float | None


@dataclass(frozen=True)
class InputForecast:
    """As `repnets.quantization.forecast.Activation`."""

    largest: float
    spread: float | None
    widest: int
    snr_db: float | None
    made_by: tuple[str, ...]


@dataclass(frozen=True)
class LogitError:
    """As `repnets.quantization.forecast.LogitError`."""

    weight: float | None
    input: float | None
    both: float | None


@dataclass(frozen=True)
class LayerForecast:
    """As `repnets.quantization.forecast.LayerForecast`."""

    name: str
    weight: WeightForecast
    input: InputForecast | None
    logit_error: LogitError | None


@dataclass(frozen=True)
class Risk:
    """As `repnets.quantization.forecast.Risk`."""

    layer: str
    hurts: str
    cause: str
    logit_error: float | None
    message: str


@dataclass(frozen=True)
class Forecast:
    """As `repnets.quantization.forecast.Forecast`."""

    images: int
    reason: str | None
    logit_error: float | None
    layers: tuple[LayerForecast, ...]
    risks: tuple[Risk, ...]


@dataclass(frozen=True)
class FreeSizes:
    """Sizes that an axis takes: ``min``, ``min`` + ``step``, and so on, without end."""

    min: int
    step: int


@dataclass(frozen=True)
class FoldedRegion:
    """As `repnets.fusion.report.FoldedRegion`."""

    name: str
    kind: str
    output: str
    nodes: tuple[str, ...]
    paths: tuple[str, ...]
    branches: tuple[str, ...]
    identities: tuple[str, ...]
    operations: int
    convolutions: int
    batch_norms: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    output_padding: tuple[int, ...] | None
    in_channels: int
    out_channels: int
    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int
    error_float64: float
    error_float32: float


@dataclass(frozen=True)
class Refusal:
    """As `repnets.fusion.plan.Refusal`."""

    node: str
    path: str
    reason: str


@dataclass(frozen=True)
class Totals:
    """As `repnets.fusion.report.Totals`."""

    operations: int
    convolutions: int
    batch_norms: int
    additions: int
    parameters: int
    macs: int


@dataclass(frozen=True)
class FuseResult:
    """What fuse.json says.

    Attributes:
        subjects: sha256 of checkpoint, split and fused.pt2; see `artifacts.evidence`.
        lineage: of fused.pt2.
        bn_health: batch norms out of the ordinary.
        forecast: what int8 will do.
        input_shape: that the network takes, None for an axis of free size; of several inputs, a shape for each.
        free: the sizes of these axes, by ``batch``, ``height`` and ``width``.
        before, after, regions, refusals: as `repnets.FuseReport.to_dict` gives them.
    """

    TITLE: ClassVar[str] = "report of a fuse"
    STAGE: ClassVar[str] = "reparameterize"
    SCHEMA: ClassVar[int] = 1

    subjects: Mapping[str, str]
    lineage: Mapping[str, Any]
    bn_health: tuple[BatchNormFinding, ...]
    forecast: Forecast
    input_shape: tuple[int | None, ...] | tuple[tuple[int | None, ...], ...]
    free: Mapping[str, FreeSizes]
    before: Totals
    after: Totals
    regions: tuple[FoldedRegion, ...]
    refusals: tuple[Refusal, ...]
