"""Runs exported files in processes of their own, so that a runtime which aborts cannot take the pipeline with it.

Some runtimes end the whole process on a file they cannot read. So the functions here start
`python -m pipeline.serving`, which opens the file and predicts or times, and turn its death into a StageError.
A runtime's number of threads holds for a whole process, and so does what it left in memory: a file that is timed
has a fresh process for itself, with its threads set in the environment before anything is loaded.

Arrays travel as .npy in a temporary folder, requests and replies as one line of JSON each over the process's
stdin and stdout; what a runtime prints goes to a log, whose last lines are quoted where it fails.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import errors, measure, serving

if TYPE_CHECKING:
    import numpy as np

_PROJECT = Path(__file__).resolve().parents[1]
_CHUNK_BYTES = 64_000_000
_QUOTED_LINES = 3
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


_UNKNOWN_START = {"load_ms": None, "first_inference_ms": None, "peak_memory_bytes": None}


@dataclass(frozen=True)
class Job:
    """An exported file, and what runs it.

    Attributes:
        backend: module under pipeline.backends, or the dotted name of one elsewhere.
        file: the exported file.
    """

    backend: str
    file: Path


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

    timing: measure.Timing
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
    with _process(backend, threads) as process:
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

    with _process(backend, 1, image) as process:
        names = process.ask("layers", file=str(file), exact=exact)["names"]
        return {name: np.load(process.folder / f"layer{index}.npy") for index, name in enumerate(names)}


def time_in_turn(jobs: Mapping[str, Job], image: "np.ndarray", threads: int, *, until: measure.Until) -> Timed:
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
    def launch() -> Iterator[dict[str, measure.Block]]:
        with ExitStack() as stack:
            running = {name: stack.enter_context(_process(job.backend, threads, image)) for name, job in jobs.items()}
            for name, process in running.items():  # all at once: an import can take seconds
                process.send("prepare", file=str(jobs[name].file), imported=imported[name])
            for process in running.values():
                process.receive()
            for name, process in running.items():
                start = process.ask("start", file=str(jobs[name].file))
                imported[name] += start.pop("imported")
                starts[name].append(start)
            yield {name: partial(_block_ms, process) for name, process in running.items()}

    if timing := _timed_by_backend(jobs, image, threads, until):
        return Timed(timing, {name: dict(_UNKNOWN_START) for name in jobs})
    timing = measure.time_in_turn(launch, until)
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
    with _process(job.backend, 1, image) as process:
        return process.ask("transfer", file=str(job.file))["ms"]


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
    with _process(job.backend, threads, image) as process:
        return process.ask("profile", file=str(job.file), runs=runs)["layers"]


def _block_ms(process: "_Process") -> list[float]:
    return process.ask("block", runs=measure.BLOCK)["ms"]


def _timed_by_backend(
    jobs: Mapping[str, Job], image: "np.ndarray", threads: int, until: measure.Until
) -> measure.Timing | None:
    backend, *others = {job.backend for job in jobs.values()}
    if others:
        return None
    with _process(backend, threads, image) as process:
        rounds = process.ask(
            "time_files",
            files={name: str(job.file) for name, job in jobs.items()},
            warmup_seconds=until.warmup_seconds,
            min_runs=until.min_runs,
            max_seconds=until.max_seconds,
        )["ms"]
    return None if rounds is None else measure.taken_elsewhere(rounds)


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


@dataclass
class _Process:
    """A running `pipeline.serving`.

    Attributes:
        folder: for arrays, and its log.
        doing, subject: what it last said that it does, and with which file.
    """

    popen: subprocess.Popen[str]
    backend: str
    folder: Path
    doing: str = "starting"
    subject: str = field(default="the exported files")

    def give(self, image: "np.ndarray") -> None:
        """Lay an image, or several, where it reads them."""
        import numpy as np

        np.save(self.folder / "images.npy", np.ascontiguousarray(image, dtype=np.float32))

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        self.send(do, **request)
        return self.receive()

    def send(self, do: str, **request: Any) -> None:
        self.doing, self.subject = "starting", request.get("file", self.subject)
        with suppress(BrokenPipeError):  # it has died: the replies have ended too
            self.popen.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self.popen.stdin.flush()

    def receive(self) -> dict[str, Any]:
        for line in self.popen.stdout:
            reply = json.loads(line)
            if "doing" in reply:
                self.doing, self.subject = reply["doing"], reply["file"]
            elif "error" in reply:
                raise _as_exception(reply, self)
            else:
                return reply
        raise errors.StageError(_obituary(self.popen.wait(), self))


@contextmanager
def _process(backend: str, threads: int, image: "np.ndarray | None" = None) -> Iterator[_Process]:
    environment = os.environ | {name: str(threads) for name in _THREAD_VARIABLES}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_PROJECT), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory(prefix="repnets-") as name:
        folder = Path(name)
        with (folder / "log").open("wb") as log, subprocess.Popen(
            [sys.executable, "-m", serving.__name__, backend, str(threads), name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment,
        ) as popen:  # fmt: skip
            process = _Process(popen, backend, folder)
            try:
                if image is not None:
                    process.give(image)
                yield process
            finally:
                popen.kill()  # it has answered all that it was asked, so there is nothing to lose
                with suppress(BrokenPipeError):  # a request that it died before reading
                    popen.stdin.close()


def _as_exception(reply: dict[str, Any], process: _Process) -> Exception:
    kind, message = reply["error"], reply["message"]
    if kind in ("InputError", "GateError", "StageError"):
        return getattr(errors, kind)(message)
    return errors.StageError(
        f"{process.subject}: the {process.backend} runtime failed while {process.doing} it: {kind}: "
        f"{message.rstrip('.')}. Export the file again; if it fails again, this runtime cannot run this network."
        f"{_last_words(process.folder)}"
    )


def _obituary(returncode: int, process: _Process) -> str:
    """What, why and how to mend it, of a worker that ended without a reply."""
    if returncode >= 0:
        cause = f"ended with exit code {returncode}"
        why = "that is most often a library that is missing or cannot be loaded"
        remedy = "Mend what its last lines name, or install the project again"
    elif -returncode == signal.SIGKILL:
        cause, why = "died of SIGKILL", "that is most often the system, because memory ran out"
        remedy = "Close other programs, or use a smaller batch or image size"
    else:
        cause = f"died of {signal.Signals(-returncode).name} ({signal.strsignal(-returncode)})"
        why = "that is most often a damaged file, or one made by another version of the runtime"
        remedy = "Delete the file and run again, which exports it anew; its manifest.json names the versions"
    return (
        f"{process.subject}: the process of the {process.backend} runtime {cause} while {process.doing} it; {why}. "
        f"{remedy}.{_last_words(process.folder)}"
    )


def _last_words(folder: Path) -> str:
    lines = (folder / "log").read_bytes().decode(errors="replace").splitlines()
    said = [" ".join(line.split()) for line in lines if line.strip()][-_QUOTED_LINES:]
    return f" It said last: {' | '.join(said)}" if said else ""
