"""The document of `repnets bench --json`: how fast some exported files are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pipeline.artifacts.bench_result import Conditions, Latency, Number, Speedup, Status, WarmUp
from pipeline.artifacts.export_result import FileFacts


@dataclass(frozen=True, kw_only=True)
class TimedFile:
    """One of the files that `repnets bench` timed in turn.

    Attributes:
        file: as the user named it.
        runtime: that ran it, in words.
        size_bytes: of the file or package, and of `data_files`.
        sha256: of the file or package alone.
        data_files: what is beside it that holds a part of it, by name; left out where there is none.
        status, reason, remedy: whether it was timed; else why not, and how to get a figure.
        speedup: over the first file; None for that one, and where one of the two was not timed.
        latency_ms, ...: see `Figures`; left out where they are not known.
    """

    file: str
    runtime: str
    size_bytes: int
    sha256: str
    data_files: Mapping[str, FileFacts] | None = None
    status: Status
    reason: str | None = None
    remedy: str | None = None
    speedup: Speedup | None
    latency_ms: Latency | None = None
    warmup: WarmUp | None = None
    load_ms: Number | None = None
    first_inference_ms: Number | None = None
    peak_memory_bytes: Number | None = None
    throughput_per_second: Number | None = None
    transfer_ms: Mapping[str, float] | None = None


@dataclass(frozen=True)
class FilesRun:
    """All files on one number of threads; see `Run`."""

    threads: int
    files: tuple[TimedFile, ...]
    stopped_by: str
    conditions: Conditions


@dataclass(frozen=True)
class FilesBench:
    """What `repnets bench --json` writes.

    Attributes:
        input_shape: (N, C, H, W) that all files were fed.
        baseline: the first file.
        runs: one for each number of threads.
    """

    TITLE: ClassVar[str] = "benchmark of files"
    STAGE: ClassVar[str] = "repnets bench"
    SCHEMA: ClassVar[int] = 1

    input_shape: tuple[int, ...]
    baseline: str
    runs: tuple[FilesRun, ...]
