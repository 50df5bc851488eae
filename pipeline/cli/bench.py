"""`repnets bench`: how fast exported files are on this machine, each on its own runtime, one against the other."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipeline import backends
from pipeline.artifacts import digests
from pipeline.artifacts.manifest import Unavailable, write_json
from pipeline.backends.worker import client
from pipeline.benchmark import conditions, inputs, interleaved, statistics, timing
from pipeline.cli import exported_files
from pipeline.cli.exported_files import Exported
from pipeline.errors import InputError, StageError
from pipeline.report.text import aligned

_HEAD = (
    *("file", "runtime", "p50 ms", "p90", "p99", "load ms", "first ms", "memory MB", "file MB"),
    "speed-up over the first",
)


def bench(
    paths: Sequence[Path],
    *,
    threads: Sequence[int] = (1,),
    image_size: int | None = None,
    min_runs: int | None = None,
    max_seconds: float | None = None,
    document: Path | None = None,
) -> None:
    """Time files in turn, and print a table for each number of threads; the first file is what others are held to.

    Args:
        paths: the exported files, of the same input shape.
        threads: for each runtime; each number is measured for itself.
        image_size: height and width, pixels, where all files take any.
        min_runs, max_seconds: see `measure.Until`, whose defaults hold.
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
    until = replace(interleaved.Until(), **{name: value for name, value in given.items() if value is not None})
    runs = []
    for number in threads:
        print(f"timing {_many(len(files) - len(missing), 'file')} on {_many(number, 'thread')}", file=sys.stderr)
        runs.append(_timed(files, missing, shape, number, until))
        print(_shown(runs[-1], shape), flush=True)
    if document:
        write_json(document, {"input_shape": list(shape), "baseline": str(paths[0]), "runs": runs})


def _timed(
    files: Sequence[Exported],
    missing: Mapping[Path, Unavailable],
    shape: tuple[int, ...],
    threads: int,
    until: interleaved.Until,
) -> dict[str, Any]:
    jobs = {str(file.path): client.Job(file.backend, file.path) for file in files if file.path not in missing}
    before = conditions.snapshot()
    timed = timing.time_in_turn(jobs, inputs.random_image(shape), threads, until=until)
    after = conditions.snapshot()
    used = [file.backend for file in files if file.path not in missing]
    packages = [package for name in used for package in backends.load(name).packages_of_figures]
    falling = [
        f"{name} was still getting faster after its warm-up; bench again when the machine is quiet"
        for name, launches in timed.timing.warmup.items()
        if not all(one.steady for one in launches)
    ]
    fed = {"image": f"random normal, seed {inputs.SEED}", **asdict(until)}
    return {
        "threads": threads,
        "files": [_row(file, missing.get(file.path), timed, str(files[0].path)) for file in files],
        "stopped_by": timed.timing.stopped_by,
        "conditions": conditions.describe(threads, list(dict.fromkeys(packages)), before, after, falling) | fed,
    }


def _row(file: Exported, missing: Unavailable | None, timed: timing.Timed, first: str) -> dict[str, Any]:
    name, samples = str(file.path), timed.timing.samples_ms
    about = {
        "file": name,
        "runtime": backends.load(file.backend).title,
        "size_bytes": file.size_bytes,
        "sha256": digests.digest(file.path),
    }
    if missing:
        return about | {"status": "unavailable", **asdict(missing)}
    return about | {
        "status": "ok",
        "latency_ms": statistics.summary(samples[name]),
        "warmup": [asdict(one) for one in timed.timing.warmup[name]],
        **timed.started[name],
        "speedup": statistics.speedup(samples[first], samples[name]) if first in samples and name != first else None,
    }


def _shown(run: Mapping[str, Any], shape: Sequence[int]) -> str:
    about = run["conditions"]
    missing = [row for row in run["files"] if row["status"] == "unavailable"]
    latency = next(row["latency_ms"] for row in run["files"] if row["status"] == "ok")
    size = " x ".join(map(str, shape))
    lines = [
        aligned([_HEAD, *(_cells(row, number) for number, row in enumerate(run["files"]))], figures=True),
        *(f"{row['file']}: {row['reason']}\n  to get a figure: {row['remedy']}" for row in missing),
        f"{about['cpu']}, {about['cores']} cores; {_many(run['threads'], 'thread')}, input {size}",
        f"{latency['n']} runs of each in {_many(latency['launches'], 'process')}; intervals of 95 %",
        ", ".join(f"{name} {version}" for name, version in about["versions"].items() if version),
    ]
    if about["warning"]:
        lines.append(f"warning: {about['warning']}")
    return "\n".join(lines)


def _tenths(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _cells(row: Mapping[str, Any], number: int) -> tuple[str, ...]:
    size = f"{row['size_bytes'] / 1e6:.2f}"
    if row["status"] == "unavailable":
        return (row["file"], row["runtime"], "unavailable", *("-",) * 5, size, "-")
    latency, memory = row["latency_ms"], row["peak_memory_bytes"]
    return (
        row["file"],
        row["runtime"],
        _with_interval(latency["p50"], latency["interval"]["p50"], 3),
        f"{latency['p90']:.3f}",
        f"{latency['p99']:.3f}",
        *(_tenths(value) for value in (row["load_ms"], row["first_inference_ms"], memory and memory / 1e6)),
        size,
        _gained(row["speedup"], number),
    )


def _gained(speedup: Mapping[str, Any] | None, number: int) -> str:
    if speedup is None:
        return "-" if number else "1"
    return _with_interval(speedup["median"], (speedup["low"], speedup["high"]), 2)


def _with_interval(value: float, ends: Sequence[float | None] | None, digits: int) -> str:
    if not ends or None in ends:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]"


def _many(number: int, what: str) -> str:
    plural = f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{number} {what if number == 1 else plural}"
