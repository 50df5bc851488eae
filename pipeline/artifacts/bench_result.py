"""bench.json, reference.json and targets/<target>/bench.json: latencies, and the conditions of the measurement.

docs/benchmarks.md says what each key means.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from pipeline.artifacts.check_result import CheckResult, Sample
from pipeline.artifacts.export_result import TensorFacts
from pipeline.artifacts.metric import Metric
from pipeline.artifacts.samples import shape_of

Number = int | float
Status = Literal["ok", "unavailable", "failed"]


@dataclass(frozen=True)
class Outliers:
    """Slow runs; they are included in every figure.

    Attributes:
        count, share: how many.
        above_ms: the threshold.
    """

    count: int
    share: float
    above_ms: float


@dataclass(frozen=True)
class Latency:
    """Latencies of one file, ms; `pipeline.benchmark.statistics.summary` says more."""

    n: int
    launches: int
    min: float
    mean: float
    std: float
    p50: float
    p90: float
    p99: float
    interval: Mapping[str, tuple[float, float] | None]
    outliers: Outliers


@dataclass(frozen=True)
class WarmUp:
    """The warm-up before the timed runs, over all launches."""

    runs: int
    seconds: float
    steady: bool


@dataclass(frozen=True)
class Figures:
    """The figures of one file; all None if it was not measured.

    Attributes:
        latency_ms: of an inference.
        warmup: None if the runtime measures by itself.
        load_ms, first_inference_ms: of a fresh process.
        peak_memory_bytes: increase of resident memory; None except on Linux.
        throughput_per_second: images.
        transfer_ms: of an input to the device and an output back, if the backend measures it.
        sha256, size_bytes: of the file; left out in `runs`.
    """

    latency_ms: Latency | None
    warmup: WarmUp | None
    load_ms: Number | None
    first_inference_ms: Number | None
    peak_memory_bytes: Number | None
    throughput_per_second: Number | None
    transfer_ms: Mapping[str, float] | None
    sha256: str | None = None
    size_bytes: int | None = None


UNTIMED = Figures(None, None, None, None, None, None, None)


@dataclass(frozen=True)
class Speedup:
    """How many times as fast the file that ships is; `pipeline.benchmark.statistics.speedup` says more."""

    median: float
    low: float | None
    high: float | None
    n: int
    by_launch: tuple[float, ...]
    method: str


@dataclass(frozen=True)
class Conditions:
    """The machine, its software and the settings; `pipeline.benchmark.conditions.describe` says more."""

    device: str
    cpu: str
    cores: int
    memory_gib: int
    gpus: tuple[str, ...]
    power_mode: str | None
    jetson_clocks: bool | None
    os: str
    threads: int
    versions: Mapping[str, str | None]
    load_average_before: Number | None
    load_average_after: Number | None
    other_load: Number | None
    cpu_mhz_before: Number | None
    cpu_mhz_after: Number | None
    temperature_c_before: Mapping[str, Number] | None
    temperature_c_after: Mapping[str, Number] | None
    busy: bool
    warning: str | None
    batch: int
    image: str
    warmup_seconds: Number
    min_runs: int
    max_seconds: Number
    target_width: Number
    min_launches: int
    max_launches: int


@dataclass(frozen=True)
class Run:
    """A measurement on one number of threads.

    Attributes:
        threads: how many.
        forms: the figures of each, the one that ships first.
        speedup: of the first over the second; None if there is only one.
        stopped_by: ``width`` or ``limit``.
        conditions: under which.
    """

    threads: int
    forms: Mapping[str, Figures]
    speedup: Speedup | None
    stopped_by: str
    conditions: Conditions


@dataclass(frozen=True)
class FormPower:
    """The power of a form while it runs alone: ``mw``, the median of the samples, and ``energy_mj`` of an inference."""

    mw: Number
    samples: int
    energy_mj: float


@dataclass(frozen=True)
class Power:
    """Energy of an inference; `pipeline.benchmark.power.measure` says more."""

    source: str
    rails: tuple[str, ...]
    measured: str
    interval_ms: int
    idle_mw: Number
    forms: Mapping[str, FormPower]


@dataclass(frozen=True)
class Window:
    """The figures of one window of `Sustained`."""

    at_seconds: Number
    n: int
    p50_ms: float
    p90_ms: float
    cpu_mhz: Number | None
    temperature_c: Mapping[str, Number] | None


@dataclass(frozen=True)
class Sustained:
    """Latency over minutes; `pipeline.benchmark.sustained.measure` says more."""

    form: str
    threads: int
    seconds: Number
    window_seconds: Number
    windows: tuple[Window, ...]
    slowdown: float


@dataclass(frozen=True)
class Measured:
    """The figures of the forms of a network.

    Attributes:
        forms, speedup: of the first run, the headline.
        runs: one for each number of threads; empty if nothing was measured.
        power: None if the machine cannot measure it.
        sustained: None if it is not configured.
    """

    forms: Mapping[str, Figures]
    speedup: Speedup | None
    runs: tuple[Run, ...]
    power: Power | None
    sustained: Sustained | None


@dataclass(frozen=True, kw_only=True)
class ReferenceResult:
    """What reference.json says: a `Measured`, with the backend and the precision.

    Attributes:
        subjects: sha256 of checkpoint and programs; see `artifacts.evidence`.
    """

    TITLE: ClassVar[str] = "measured reference"
    STAGE: ClassVar[str] = "reference"
    SCHEMA: ClassVar[int] = 1

    subjects: Mapping[str, str]
    backend: str
    precision: str
    forms: Mapping[str, Figures]
    speedup: Speedup | None
    runs: tuple[Run, ...]
    power: Power | None
    sustained: Sustained | None


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A `Measured` of another runtime, for a target whose runtime is not here: which runtime, in which precision."""

    runtime: str
    precision: str
    forms: Mapping[str, Figures]
    speedup: Speedup | None
    runs: tuple[Run, ...]
    power: Power | None
    sustained: Sustained | None


@dataclass(frozen=True)
class BenchAccuracy:
    """As in `CheckResult`, and the runtime that ran the file for it.

    Attributes:
        branched, fused, file: None where there is none, or where the metric is ``none``.
    """

    branched: float | None
    fused: float | None
    file: float | None
    checked_by: str | None
    metric: Metric = "top-1"
    sample: Sample | None = None


def accuracy_of(checked: CheckResult) -> BenchAccuracy:
    """What a bench tells of a file's accuracy, by its check."""
    if checked.accuracy.metric == "none":
        return BenchAccuracy(None, None, None, checked.checked_by, "none", checked.accuracy.sample)
    return BenchAccuracy(**vars(checked.accuracy), checked_by=checked.checked_by)


@dataclass(frozen=True)
class Tried:
    """A candidate of `precision: auto`.

    Attributes:
        status: ``lost`` if it fails a gate, for the reason.
        accuracy: the score of the file; None if nothing here runs it.
        p50_ms: None if it was not timed.
        pareto: no other candidate that passes its gates is at least as good in all, and better in one.
    """

    precision: str
    status: Literal["ok", "lost"]
    reason: str | None
    accuracy: float | None
    p50_ms: float | None
    size_bytes: int
    pareto: bool = False


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """What bench.json says of one network for one target.

    Attributes:
        status, reason, remedy: whether it was measured; if not, why, and how to get a figure.
        subjects: sha256 of the files, their manifest, check.json, programs and reference; see `artifacts.evidence`.
        target, model, backend, precision, input, further_inputs: as in the manifest.
        chosen, chosen_by, tried: for a target of `precision: auto`; otherwise left out.
        forms, speedup, runs, power, sustained: see `Measured`.
        reference: figures of another runtime, if the target's is not here.
        accuracy: of check.
        conditions: of the headline, or of the reference's.
        files: names of the files of each form.
    """

    TITLE: ClassVar[str] = "benchmark"
    STAGE: ClassVar[str] = "bench"
    SCHEMA: ClassVar[int] = 1

    status: Status
    reason: str | None
    remedy: str | None
    subjects: Mapping[str, str]
    target: str
    model: str
    backend: str
    precision: str
    input: TensorFacts
    further_inputs: tuple[TensorFacts, ...] | None = None
    chosen: str | None = None
    chosen_by: str | None = None
    tried: tuple[Tried, ...] | None = None
    forms: Mapping[str, Figures]
    speedup: Speedup | None
    runs: tuple[Run, ...]
    power: Power | None
    sustained: Sustained | None
    reference: Reference | None
    accuracy: BenchAccuracy
    conditions: Conditions | None
    files: Mapping[str, tuple[str, ...]]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Of a batch of samples; see `pipeline.artifacts.samples`."""
        return shape_of([self.input.shape, *(one.shape for one in self.further_inputs or ())])

    @property
    def shipped(self) -> str:
        """Name of the form that ships."""
        return next(iter(self.forms))


@dataclass(frozen=True)
class TargetBench:
    """What targets/<target>/bench.json says: the worst status of its models, and the bench.json of each.

    Attributes:
        subjects: sha256 of each model's bench.json, by the model; see `artifacts.evidence`.
    """

    TITLE: ClassVar[str] = "summary of benchmarks"
    STAGE: ClassVar[str] = "summarize"
    SCHEMA: ClassVar[int] = 1

    target: str
    status: Status
    subjects: Mapping[str, str]
    models: Mapping[str, BenchResult]
