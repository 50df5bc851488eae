"""Runs exported files in processes of their own, so that a runtime which aborts cannot take the pipeline with it.

Some runtimes end the whole process on a file they cannot read. So the functions here start
`python -m pipeline.backends.worker.server`, which opens the file and predicts or times, and raise a StageError where
that process dies. A runtime's number of threads holds for a whole process, and so does what it left in memory: a file that is timed
has a fresh process for itself, with its threads set in the environment before anything is loaded.

Arrays travel as .npy in a temporary folder, requests and replies as one line of JSON each over the process's
stdin and stdout; what a runtime prints goes to a log, whose last lines are quoted where it fails. A job may run on a
device (`remote`): then the process is started there, and all else is the same.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import errors
from pipeline.backends.worker.process import Process, opened
from pipeline.backends.worker.remote import Remote
from pipeline.benchmark import interleaved

if TYPE_CHECKING:
    import numpy as np

_CHUNK_BYTES = 64_000_000
_ASKED_SECONDS = 1.0  # of runs in one request: the way there and back is no pause then

UNKNOWN_START = {"load_ms": None, "first_inference_ms": None, "peak_memory_bytes": None}


@dataclass(frozen=True)
class Job:
    """An exported file, and what runs it.

    Attributes:
        backend: module under pipeline.backends, or the dotted name of one elsewhere.
        file: the exported file.
        on: the device that it was brought to; None for this machine.
    """

    backend: str
    file: Path
    on: Remote | None = None

    @property
    def place(self) -> str:
        """Where the file lies for the process that opens it."""
        return str(self.file) if self.on is None else self.on.names[self.file]


@dataclass(frozen=True)
class Timed:
    """Files that were timed in turn.

    Attributes:
        timing: the samples, by the name of each job.
        started: by the name of each job, the median over the processes that it was started in of ``load_ms``;
            ``first_inference_ms``; and ``peak_memory_bytes``: how far the process's resident memory grew over what
            it was before the load, at its peak, the file's own pages included; None off Linux. All are None where the
            runtime took the times in a way of its own.
    """

    timing: interleaved.Timing
    started: Mapping[str, Mapping[str, float | int | None]]


def predict(
    backend: str,
    file: Path,
    images: "np.ndarray | Iterable[np.ndarray]",
    threads: int = 1,
    *,
    session: str = "check",
    batch: int = 1,
) -> "np.ndarray":
    """Put images through an exported file.

    Args:
        backend: module under pipeline.backends, or the dotted name of one elsewhere.
        file: the exported file.
        images: float32 (M, 3, H, W), or an iterable of such pieces where they do not fit into memory at once.
        threads: for the runtime.
        session: how the file is opened: ``check``, the runtime that `check` uses; ``exact``, the same in float32
            arithmetic on the stored weights; ``own``, the target's own runtime.
        batch: N of the file's input. The last batch of each piece is padded with zeros, and its surplus cut.

    Returns:
        float32 logits (M, classes), in the order of the images.

    Raises:
        StageError: the runtime failed, or ended the process.
        InputError: the file cannot be used; there is no image.
    """
    import numpy as np

    logits = []
    with opened(backend, threads) as process:
        process.ask("open", file=str(file), session=session)
        for piece in _pieces(images, batch):
            process.give(piece)
            process.ask("predict", batch=batch)
            logits.append(np.load(process.folder / "logits.npy"))
    if not logits:
        raise errors.InputError(f"{file}: there is no image to predict from; the validation split is empty.")
    return np.concatenate(logits)


def outputs_by_layer(backend: str, file: Path, image: "np.ndarray", *, exact: bool = False) -> "dict[str, np.ndarray]":
    """What each operation of an exported file gives for one image.

    Args:
        backend: module under pipeline.backends, or the dotted name of one elsewhere, that offers this.
        file: the exported file.
        image: float32, of the file's input shape.
        exact: float32 arithmetic on the stored weights, instead of the file's own.

    Returns:
        float32 arrays in the order of execution, by the name of the program's node that each came from.

    Raises:
        StageError: the runtime failed, or ended the process.
        InputError: the file cannot be used.
    """
    import numpy as np

    with opened(backend, 1, image) as process:
        names = process.ask("layers", file=str(file), exact=exact)["names"]
        return {name: np.load(process.folder / f"layer{index}.npy") for index, name in enumerate(names)}


def time_in_turn(jobs: Mapping[str, Job], image: "np.ndarray", threads: int, *, until: interleaved.Until) -> Timed:
    """Time exported files against each other, each on its own runtime, in turn, each in a process of its own.

    The processes are started afresh `until.min_launches` to `until.max_launches` times, since where a process lies
    in memory and on which cores is part of its latency. In each launch they are asked for blocks in turn: A B A B.
    The clock is the backend's own (`open_clock`), else the wall clock around one call, with input and output arrays
    in the host's memory. Where all jobs are of one backend that takes the time in a way of its own (`time_files`),
    that is used.

    Args:
        jobs: what to time, by a name of your own, in the order of the rounds.
        image: float32, of the files' input shape.
        threads: for each runtime.
        until: how long.

    Raises:
        StageError: a runtime failed, or ended its process.
        InputError: a file cannot be used.
    """
    imported: dict[str, list[str]] = {name: [] for name in jobs}
    starts: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}

    @contextmanager
    def launch() -> Iterator[dict[str, interleaved.Block]]:
        with ExitStack() as stack:
            running = {name: stack.enter_context(_process_of(job, threads, image)) for name, job in jobs.items()}
            for name, process in running.items():  # all at once: an import can take seconds
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


def transfer_ms(job: Job, image: "np.ndarray") -> dict[str, float] | None:
    """Time to bring one input to the device and its output back, or None where the backend has none to tell of.

    Args:
        job: the file.
        image: float32, of the file's input shape.

    Returns:
        ``host_to_device``, ``device_to_host``.

    Raises:
        StageError: the runtime failed, or ended the process.
    """
    if job.on is not None:  # what is served there computes on the CPU
        return None
    with _process_of(job, 1, image) as process:
        return process.ask("transfer", file=job.place)["ms"]


def profile(job: Job, image: "np.ndarray", threads: int, runs: int) -> list[dict[str, Any]] | None:
    """Where the time of one inference goes, or None where the backend cannot tell.

    Args:
        job: the file.
        image: float32, of the file's input shape.
        threads: for the runtime.
        runs: that each figure is the median of.

    Returns:
        What the backend's `profile` returns: ``name``, ``kind`` and ``ms`` of each operation, in their order.

    Raises:
        StageError: the runtime failed, or ended the process.
    """
    with _process_of(job, threads, image) as process:
        return process.ask("profile", file=job.place, runs=runs)["layers"]


def trace(job: Job, image: "np.ndarray", threads: int, runs: int) -> bytes:
    """What a runner on a device writes of its runs: the runtime's own event trace.

    Raises:
        StageError, DeviceError: as `profile`.
    """
    with _process_of(job, threads, image) as process:
        place = process.ask("trace", file=job.place, runs=runs)["trace"]
        job.on.device.pull(place, process.folder / "trace")
        return (process.folder / "trace").read_bytes()


@contextmanager
def alone(job: Job, image: "np.ndarray", threads: int) -> Iterator[Callable[[float], list[float]]]:
    """A file that runs alone, without a pause: each call goes on for some seconds and gives the ms of each run.

    Raises:
        StageError: the runtime failed, or ended the process.
        DeviceError: the link to the device was cut.
    """
    with _process_of(job, threads, image) as process:
        process.ask("start", file=job.place)

        def run_for(seconds: float) -> list[float]:
            begin, taken = time.monotonic(), _block_ms(process)
            while (left := seconds - (time.monotonic() - begin)) > 0:
                runs = min(left, _ASKED_SECONDS) * 1000 / statistics.median(taken)
                taken += process.ask("block", runs=max(1, round(runs)))["ms"]
            return taken

        yield run_for


def _block_ms(process: Process) -> list[float]:
    return process.ask("block", runs=interleaved.BLOCK)["ms"]


def _timed_by_backend(
    jobs: Mapping[str, Job], image: "np.ndarray", threads: int, until: interleaved.Until
) -> interleaved.Timing | None:
    first, *others = jobs.values()
    if first.on is not None or any(job.backend != first.backend for job in others):
        return None
    with _process_of(first, threads, image) as process:
        rounds = process.ask(
            "time_files",
            files={name: job.place for name, job in jobs.items()},
            warmup_seconds=until.warmup_seconds,
            min_runs=until.min_runs,
            max_seconds=until.max_seconds,
        )["ms"]
    return None if rounds is None else interleaved.taken_elsewhere(rounds)


def _median_start(starts: list[dict[str, Any]]) -> dict[str, float | int | None]:
    """Of all launches but the first, in which the imports counted."""
    late = starts[1:] or starts
    found = {key: [start[key] for start in late] for key in late[0]}
    return {key: None if None in values else statistics.median_low(values) for key, values in found.items()}


def _pieces(images: "np.ndarray | Iterable[np.ndarray]", batch: int) -> "Iterator[np.ndarray]":
    import numpy as np

    for part in [images] if isinstance(images, np.ndarray) else images:
        if not len(part):
            continue
        rows = max(1, _CHUNK_BYTES // (part[0].size * 4) // batch) * batch
        for start in range(0, len(part), rows):
            yield part[start : start + rows]


def _process_of(job: Job, threads: int, image: "np.ndarray") -> AbstractContextManager[Process]:
    return opened(job.backend, threads, image, job.on)
