"""profile.json: where the time of an inference goes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.artifacts.bench_result import Number, Status


@dataclass(frozen=True)
class ProfileResult:
    """What profile.json says; what is left out where `status` is not ``ok`` comes after `form`.

    Attributes:
        status, reason: whether the runtime tells; else why not.
        target, model, backend, precision, form: of the file.
        threads, runs: that each operation's time was taken on, and from.
        inference_ms: of the whole, without a profile.
        sum_ms: of all operations.
        named: whether the layers of the network could be told.
        operations: in the order of execution; see `pipeline.benchmark.profile.document`. Backends tell more of theirs.
    """

    TITLE: ClassVar[str] = "profile"
    STAGE: ClassVar[str] = "bench"
    SCHEMA: ClassVar[int] = 1

    status: Status
    reason: str | None
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
    operations: tuple[Mapping[str, Any], ...] | None = None
