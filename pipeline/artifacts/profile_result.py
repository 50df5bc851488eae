"""profile.json: where the time of an inference goes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pipeline.artifacts.bench_result import Number, Status


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation of a file.

    Attributes:
        layer: of the network, by its name; None where it is of none, or none could be told.
        weight: shape of that layer's weight, likewise.
        name: as the runtime calls it.
        kind: ``convolution``, ``depthwise``, ``linear`` or another word.
        ms: its time.
        estimated: the runtime times no operation by itself, so that `ms` is an estimate; else left out.
        unit: that computes it, where the backend tells it.
        cost: its share of the whole by the runtime's own cost model, where the backend tells it.
        share: of the time of all operations.
    """

    layer: str | None
    weight: tuple[int, ...] | None
    name: str
    kind: str
    ms: Number
    estimated: bool | None = None
    unit: str | None = None
    cost: float | None = None
    share: float


@dataclass(frozen=True)
class ProfileResult:
    """What profile.json says; what is left out where `status` is not ``ok`` comes after `form`.

    Attributes:
        status, reason: whether the runtime tells; else why not.
        subjects: sha256 of bench.json; see `artifacts.evidence`.
        target, model, backend, precision, form: of the file.
        threads, runs: that each operation's time was measured with.
        inference_ms: median latency of the whole inference, without a profile.
        sum_ms: of all operations.
        named: whether the operations could be matched to layers of the network.
        operations: in the order of execution.
    """

    TITLE: ClassVar[str] = "profile"
    STAGE: ClassVar[str] = "bench"
    SCHEMA: ClassVar[int] = 1

    status: Status
    reason: str | None
    subjects: Mapping[str, str]
    target: str
    model: str
    backend: str
    precision: str
    form: str
    threads: int | None = None
    runs: int | None = None
    inference_ms: Number | None = None
    sum_ms: Number | None = None
    named: bool | None = None
    operations: tuple[Operation, ...] | None = None

    def slowest(self, count: int = 10) -> list[Operation]:
        """The operations that take the longest, the longest first."""
        return sorted(self.operations or (), key=lambda one: -one.share)[:count]
