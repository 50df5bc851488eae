"""`repnets bench`: how fast exported files are on this machine, each on its own runtime, one against the other."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline import backends
from pipeline.artifacts import documents
from pipeline.artifacts.bench_result import Speedup
from pipeline.artifacts.export_result import FileFacts
from pipeline.artifacts.files_bench_result import FilesBench, FilesRun, TimedFile
from pipeline.artifacts.manifest import ImageSize, Unavailable
from pipeline.backends.worker.client import Job
from pipeline.benchmark import measurement, runners
from pipeline.benchmark.interleaved import Until
from pipeline.cli import exported_files
from pipeline.cli.exported_files import Exported
from pipeline.errors import InputError, StageError
from pipeline.report.figures import NONE, megabytes, milliseconds
from pipeline.report.text import aligned

HELP = f"""\
Time exported files on this machine, each with its own runtime and in processes of its own, in turn (A B A B), and print
a table. The speed-up of each file is over the first file: the median of the paired ratios, with a 95 % interval.

{exported_files.FILES.format(coreml="Core ML, on a Mac")}
A file whose runtime is not on this machine is listed as unavailable, with the remedy; no other runtime is timed in its
place. Memory is the increase of the process's resident memory. A warning is printed if other programs kept the machine
busy.

Exit code 0: a file was timed. 1: none could be timed, or a runtime failed. 2: a file cannot be used.

examples:
  repnets bench targets/executorch/toy/branched.pte targets/executorch/toy/fused.pte
  repnets bench artifacts/toy/fused.pt2 targets/tensorrt/toy/fused.onnx targets/executorch/toy/fused.pte --threads 1,2
"""

_HEAD = (
    *("file", "runtime", "p50 ms", "p90", "p99", "load ms", "first ms", "memory MB", "file MB"),
    "speed-up over the first",
)


def bench(
    paths: Sequence[Path],
    *,
    threads: Sequence[int] = (1,),
    image_size: ImageSize | None = None,
    min_runs: int | None = None,
    max_seconds: float | None = None,
    document: Path | None = None,
) -> None:
    """Time files in turn, and print a table for each number of threads; the first file is the baseline.

    Args:
        paths: the exported files, of the same input shape.
        threads: for each runtime; each number is measured by itself.
        image_size: height and width, pixels, where all files take any.
        min_runs, max_seconds: see `interleaved.Until`; None: its defaults.
        document: where to write the figures as JSON.

    Raises:
        InputError: a file cannot be used, or is named twice; the files do not take the same input.
        StageError: no file's runtime is on this machine; a runtime failed.
    """
    if twice := next((path for path in paths if list(paths).count(path) > 1), None):
        raise InputError(f"{twice} is named twice, and a file is not faster than itself. Name it once.")
    files = [exported_files.open_file(path) for path in paths]
    missing = {file.path: found for file in files if (found := backends.load(file.backend).unavailable())}
    if len(missing) == len(files):
        why = next(iter(missing.values()))
        raise StageError(f"none of these files can be timed on this machine. {why.reason} {why.remedy}")
    shape = exported_files.common_shape(files, image_size)
    given = {"min_runs": min_runs, "max_seconds": max_seconds}
    limits = replace(Until(), **{name: value for name, value in given.items() if value is not None})
    runs = []
    for number in threads:
        print(f"timing {_many(len(files) - len(missing), 'file')} on {_many(number, 'thread')}", file=sys.stderr)
        runs.append(_run(files, missing, shape, number, limits))
        print(_shown(runs[-1], shape), flush=True)
    if document:
        documents.write(document, FilesBench(shape, str(paths[0]), tuple(runs)))


def _run(
    files: Sequence[Exported],
    missing: Mapping[Path, Unavailable],
    shape: tuple[int, ...],
    threads: int,
    limits: Until,
) -> FilesRun:
    jobs = {str(file.path): Job(file.backend, file.path) for file in files if file.path not in missing}
    run, samples = measurement.timed(runners.here(jobs), list(jobs), shape, threads, limits)
    first, timed = str(files[0].path), []
    for file in files:
        name = str(file.path)
        described = _described(file)
        if why := missing.get(file.path):
            timed.append(replace(described, status="unavailable", reason=why.reason, remedy=why.remedy))
            continue
        speedup = measurement.speedup(samples, name, first) if first in samples and name != first else None
        measured = {key: value for key, value in vars(run.forms[name]).items() if key not in ("sha256", "size_bytes")}
        timed.append(replace(described, speedup=speedup, **measured))
    return FilesRun(threads, tuple(timed), run.stopped_by, run.conditions)


def _described(file: Exported) -> TimedFile:
    """A file, without its figures."""
    facts = FileFacts.of(file.path)
    beside = {part.name: FileFacts.of(part) for part in file.data_files}
    return TimedFile(
        file=str(file.path),
        runtime=backends.load(file.backend).title,
        size_bytes=facts.size_bytes + sum(part.size_bytes for part in beside.values()),
        sha256=facts.sha256,
        data_files=beside or None,
        status="ok",
        speedup=None,
    )


def _shown(run: FilesRun, shape: Sequence[int]) -> str:
    conditions = run.conditions
    missing = [file for file in run.files if file.status == "unavailable"]
    latency = next(file.latency_ms for file in run.files if file.latency_ms)
    size = " x ".join(map(str, shape))
    lines = [
        aligned([_HEAD, *(_cells(file, number) for number, file in enumerate(run.files))], figures=True),
        *(f"{file.file}: {file.reason}\n  to get a figure: {file.remedy}" for file in missing),
        f"{conditions.cpu}, {conditions.cores} cores; {_many(run.threads, 'thread')}, input {size}",
        f"{latency.n} runs of each in {_many(latency.launches, 'process')}; intervals of 95 %",
        ", ".join(f"{name} {version}" for name, version in conditions.versions.items() if version),
    ]
    if conditions.warning:
        lines.append(f"warning: {conditions.warning}")
    return "\n".join(lines)


def _cells(file: TimedFile, number: int) -> tuple[str, ...]:
    size, latency, memory = megabytes(file.size_bytes), file.latency_ms, file.peak_memory_bytes
    if latency is None:
        return (file.file, file.runtime, file.status, *(NONE,) * 5, size, NONE)
    return (
        file.file,
        file.runtime,
        _with_interval(latency.p50, latency.interval["p50"], 3),
        milliseconds(latency.p90),
        milliseconds(latency.p99),
        *(_tenths(value) for value in (file.load_ms, file.first_inference_ms, memory and memory / 1e6)),
        size,
        _speedup(file.speedup, number),
    )


def _speedup(speedup: Speedup | None, number: int) -> str:
    if speedup is None:
        return NONE if number else "1"
    return _with_interval(speedup.median, (speedup.low, speedup.high), 2)


def _tenths(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}"


def _with_interval(value: float, ends: Sequence[float | None] | None, digits: int) -> str:
    if not ends or None in ends:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]"


def _many(number: int, what: str) -> str:
    plural = f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{number} {what if number == 1 else plural}"
