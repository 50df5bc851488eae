"""Time exported files against each other, in turn, each in a process of its own.

Each file has a fresh process, because a runtime's number of threads and its use of memory belong to a process.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.backends.worker.client import Job, process_of
from pipeline.backends.worker.process import Process
from pipeline.benchmark import interleaved

if TYPE_CHECKING:
    import numpy as np

_REQUEST_SECONDS = 1.0  # of runs in one request, so that the time between requests does not count


UNKNOWN_START = {"load_ms": None, "first_inference_ms": None, "peak_memory_bytes": None}


@dataclass(frozen=True)
class Timed:
    """Files that were timed in turn.

    Attributes:
        timing: the samples, by the name of each job.
        started: by the name of each job, medians over the launches of ``load_ms``; ``first_inference_ms``; and
            ``peak_memory_bytes``, the increase of the process's resident memory from before the load to its peak, the
            pages of the file included; None except on Linux. All are None if the runtime measures by itself.
    """

    timing: interleaved.Timing
    started: Mapping[str, Mapping[str, float | int | None]]


def time_in_turn(jobs: Mapping[str, Job], image: "np.ndarray", threads: int, *, until: interleaved.Until) -> Timed:
    """Time exported files against each other, each on its own runtime, in turn, each in a process of its own.

    The processes are started afresh `until.min_launches` to `until.max_launches` times, because the place of a process
    in memory and its cores affect its latency. In each launch they run blocks in turn: A B A B. The clock is the
    runtime's own (`Runtime.open_clock`) or the wall clock around one call, with input and output arrays in the host's
    memory. If all jobs are of one backend that times files by itself (`Runtime.time_files`), that is used.

    Args:
        jobs: the files, by a name, in the order of the rounds.
        image: float32, of the files' input shape.
        threads: for each runtime.
        until: when to stop.

    Raises:
        StageError: a runtime failed, or ended its process.
        InputError: a file cannot be used.
    """
    imported: dict[str, list[str]] = {name: [] for name in jobs}
    starts: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}

    @contextmanager
    def launch() -> Iterator[dict[str, interleaved.Block]]:
        with ExitStack() as stack:
            running = {name: stack.enter_context(process_of(job, threads, image)) for name, job in jobs.items()}
            for name, process in running.items():  # imports run in parallel: they can take seconds
                process.send("prepare", file=jobs[name].place, imported=imported[name])
            for process in running.values():
                process.receive()
            for name, process in running.items():
                start = process.ask("start", file=jobs[name].place)
                imported[name] += start.pop("imported")
                starts[name].append(start)
            yield {name: partial(_block_ms, process) for name, process in running.items()}

    if timing := _timed_by_backend(jobs, image, threads, until):
        return Timed(timing, {name: dict(UNKNOWN_START) for name in jobs})
    timing = interleaved.time_in_turn(launch, until)
    return Timed(timing, {name: _median_start(found) for name, found in starts.items()})


@contextmanager
def alone(job: Job, image: "np.ndarray", threads: int) -> Iterator[Callable[[float], list[float]]]:
    """Run one file without a pause: each call takes some seconds and returns the ms of each run.

    Raises:
        StageError: the runtime failed, or ended the process.
        DeviceError: the link to the device was cut.
    """
    with process_of(job, threads, image) as process:
        process.ask("start", file=job.place)

        def run_for(seconds: float) -> list[float]:
            begin, taken = time.monotonic(), _block_ms(process)
            while (left := seconds - (time.monotonic() - begin)) > 0:
                runs = min(left, _REQUEST_SECONDS) * 1000 / statistics.median(taken)
                taken += process.ask("block", runs=max(1, round(runs)))["ms"]
            return taken

        yield run_for


def _block_ms(process: Process) -> list[float]:
    return process.ask("block", runs=interleaved.BLOCK)["ms"]


def _timed_by_backend(
    jobs: Mapping[str, Job], image: "np.ndarray", threads: int, until: interleaved.Until
) -> interleaved.Timing | None:
    first, *others = jobs.values()
    is_able = first.on is None and first.runtime.time_files is not None
    if not is_able or any(job.backend != first.backend for job in others):
        return None
    with process_of(first, threads, image) as process:
        rounds = process.ask(
            "time_files",
            files={name: job.place for name, job in jobs.items()},
            warmup_seconds=until.warmup_seconds,
            min_runs=until.min_runs,
            max_seconds=until.max_seconds,
        )["ms"]
    return None if rounds is None else interleaved.of_rounds(rounds)


def _median_start(starts: list[dict[str, Any]]) -> dict[str, float | int | None]:
    """The medians over all launches but the first, whose figures include imports."""
    late = starts[1:] or starts
    found = {key: [start[key] for start in late] for key in late[0]}
    return {key: None if None in values else statistics.median_low(values) for key, values in found.items()}
