"""Runs exported files in a subprocess, so that a runtime which aborts cannot take the pipeline with it.

Some runtimes end the whole process on a file they cannot read. So the functions here start
`python -m pipeline.worker`, which opens the file and predicts or times, and turn its death into a StageError.
A runtime's number of threads holds for a whole process: there is one worker per file set and thread count.

Arrays travel as .npy in a temporary folder, requests and replies as one line of JSON each over the worker's
stdin and stdout; what a runtime prints goes to a log, whose last lines are quoted where it fails.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import errors, measure

if TYPE_CHECKING:
    import numpy as np

_PROJECT = Path(__file__).resolve().parents[1]
_CHUNK_BYTES = 64_000_000
_QUOTED_LINES = 3
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")

Session = Callable[["np.ndarray"], "np.ndarray"]


@dataclass(frozen=True)
class Timed:
    """Forms of a network, timed in turn in one process.

    Attributes:
        timing: the samples.
        imported: Python modules that opening the sessions imported, in order; `cold_start` takes them.
    """

    timing: measure.Timing
    imported: tuple[str, ...]


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
    with _worker(backend, threads) as (ask, folder):
        ask("open", form="file", file=str(file), session=session)
        for piece in _pieces(images, batch):
            np.save(folder / "images.npy", np.ascontiguousarray(piece, dtype=np.float32))
            ask("predict", form="file", batch=batch)
            logits.append(np.load(folder / "logits.npy"))
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

    with _worker(backend, 1) as (ask, folder):
        np.save(folder / "images.npy", np.ascontiguousarray(image, dtype=np.float32))
        names = ask("layers", file=str(file), exact=exact)["names"]
        return {name: np.load(folder / f"layer{index}.npy") for index, name in enumerate(names)}


def time_forms(
    backend: str,
    files: Mapping[str, Path],
    image: "np.ndarray",
    threads: int,
    *,
    warmup_seconds: float,
    min_runs: int,
    max_seconds: float,
) -> Timed:
    """Time the forms of a network in turn, on the target's own runtime, in one process.

    The wall clock runs around one call: input and output are arrays in the host's memory.

    Args:
        backend: module under pipeline.backends, or the dotted name of one elsewhere.
        files: the exported file of each form.
        image: float32, of the files' input shape.
        threads: for the runtime.
        warmup_seconds, min_runs, max_seconds: see `measure.time_in_turn`.

    Raises:
        StageError: the runtime failed, or ended the process.
    """
    import numpy as np

    with _worker(backend, threads) as (ask, folder):
        np.save(folder / "images.npy", np.ascontiguousarray(image, dtype=np.float32))
        imported: list[str] = []
        for form, file in files.items():
            imported += ask("open", form=form, file=str(file), session="own")["imported"]
        warmup = ask("time", warmup_seconds=warmup_seconds, min_runs=min_runs, max_seconds=max_seconds)["warmup"]
        samples = {form: np.load(folder / f"{form}.npy") for form in files}
    return Timed(measure.Timing(samples, warmup), tuple(imported))


def cold_start(
    backend: str, file: Path, image: "np.ndarray", threads: int, imported: Sequence[str] = ()
) -> dict[str, float | int | None]:
    """Open one file in a process of its own and run it once, on the target's own runtime.

    Args:
        backend, file, image, threads: as for `time_forms`.
        imported: modules to import before the clock starts, so that the runtime's own start in Python does
            not count as the network's: `Timed.imported`.

    Returns:
        load_ms; first_inference_ms; peak_memory_bytes: how far the process's resident memory grew over what
        it was before the load, at its peak, the file's own pages included; None off Linux.

    Raises:
        StageError: the runtime failed, or ended the process.
    """
    import numpy as np

    with _worker(backend, threads) as (ask, folder):
        np.save(folder / "images.npy", np.ascontiguousarray(image, dtype=np.float32))
        return ask("cold_start", file=str(file), imported=list(imported))


def _pieces(images: "np.ndarray | Iterable[np.ndarray]", batch: int) -> "Iterator[np.ndarray]":
    import numpy as np

    for part in [images] if isinstance(images, np.ndarray) else images:
        if not len(part):
            continue
        rows = max(1, _CHUNK_BYTES // (part[0].size * 4) // batch) * batch
        for start in range(0, len(part), rows):
            yield part[start : start + rows]


@contextmanager
def _worker(backend: str, threads: int) -> Iterator[tuple[Callable[..., dict[str, Any]], Path]]:
    """Start a worker; yields what asks it, and the folder for arrays."""
    environment = os.environ | {name: str(threads) for name in _THREAD_VARIABLES}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_PROJECT), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory(prefix="repnets-") as name:
        folder = Path(name)
        with (folder / "log").open("wb") as log, subprocess.Popen(
            [sys.executable, "-m", "pipeline.worker", backend, str(threads), name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment,
        ) as process:  # fmt: skip
            try:
                yield partial(_ask, process, backend, folder), folder
            finally:
                process.kill()  # it has answered all that it was asked, so there is nothing to lose
                with suppress(BrokenPipeError):  # a request that it died before reading
                    process.stdin.close()


def _ask(process: subprocess.Popen[str], backend: str, folder: Path, do: str, **request: Any) -> dict[str, Any]:
    doing, subject = "starting", request.get("file") or "the exported files"
    with suppress(BrokenPipeError):  # it has died: the replies have ended too
        process.stdin.write(json.dumps({"do": do, **request}) + "\n")
        process.stdin.flush()
    for line in process.stdout:
        reply = json.loads(line)
        if "doing" in reply:
            doing, subject = reply["doing"], reply["file"]
        elif "error" in reply:
            raise _as_exception(reply, backend, doing, subject, folder)
        else:
            return reply
    raise errors.StageError(_obituary(process.wait(), backend, doing, subject, folder))


def _as_exception(reply: dict[str, Any], backend: str, doing: str, file: str, folder: Path) -> Exception:
    kind, message = reply["error"], reply["message"]
    if kind in ("InputError", "GateError", "StageError"):
        return getattr(errors, kind)(message)
    return errors.StageError(
        f"{file}: the {backend} runtime failed while {doing} it: {kind}: {message.rstrip('.')}. Export the "
        f"file again; if it fails again, this runtime cannot run this network.{_last_words(folder)}"
    )


def _obituary(returncode: int, backend: str, doing: str, file: str, folder: Path) -> str:
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
        f"{file}: the process of the {backend} runtime {cause} while {doing} it; {why}. {remedy}.{_last_words(folder)}"
    )


def _last_words(folder: Path) -> str:
    lines = (folder / "log").read_bytes().decode(errors="replace").splitlines()
    said = [" ".join(line.split()) for line in lines if line.strip()][-_QUOTED_LINES:]
    return f" It said last: {' | '.join(said)}" if said else ""


# From here on: what runs in the subprocess.


@dataclass(frozen=True)
class _State:
    """What the subprocess holds between requests: an open session, and its file, for each form."""

    backend: str
    threads: int
    folder: Path
    say: Callable[..., None]
    sessions: dict[str, tuple[str, Session]] = field(default_factory=dict)

    def module(self) -> Any:
        return import_module(self.backend if "." in self.backend else f"pipeline.backends.{self.backend}")


_OPENERS = {"own": "open_session", "check": "open_check_session", "exact": "open_exact_session"}


def _open(state: _State, *, form: str, file: str, session: str) -> dict[str, Any]:
    backend = state.module()
    known = set(sys.modules)
    state.say(doing="opening", file=file)
    opener = getattr(backend, _OPENERS[session])
    state.sessions[form] = (file, opener(Path(file), state.threads))
    return {"imported": [name for name in sys.modules if name not in known]}


def _predict(state: _State, *, form: str, batch: int) -> dict[str, Any]:
    import numpy as np

    file, session = state.sessions[form]
    state.say(doing="predicting with", file=file)
    images = np.load(state.folder / "images.npy", mmap_mode="r")
    logits = []
    for start in range(0, len(images), batch):
        real = images[start : start + batch]
        fed = np.zeros((batch, *images.shape[1:]), dtype=np.float32)
        fed[: len(real)] = real
        logits.append(np.array(session(fed)[: len(real)]))
    np.save(state.folder / "logits.npy", np.concatenate(logits))
    return {}


def _layers(state: _State, *, file: str, exact: bool) -> dict[str, Any]:
    import numpy as np

    state.say(doing="reading layer by layer", file=file)
    outputs = state.module().outputs_by_layer(Path(file), np.load(state.folder / "images.npy"), exact=exact)
    for index, output in enumerate(outputs.values()):
        np.save(state.folder / f"layer{index}.npy", output)
    return {"names": list(outputs)}


def _time(state: _State, **how_long: Any) -> dict[str, Any]:
    import gc

    import numpy as np

    image = np.load(state.folder / "images.npy")
    for file, session in state.sessions.values():
        state.say(doing="running", file=file)
        session(image)
    state.say(doing="timing", file=", ".join(file for file, _ in state.sessions.values()))
    gc.collect()
    gc.disable()
    runs = {form: partial(session, image) for form, (_, session) in state.sessions.items()}
    timing = measure.time_in_turn(runs, **how_long)
    for form, samples in timing.samples_ms.items():
        np.save(state.folder / f"{form}.npy", samples)
    return {"warmup": {form: runs + 1 for form, runs in timing.warmup.items()}}


def _cold_start(state: _State, *, file: str, imported: Sequence[str]) -> dict[str, Any]:
    import gc

    import numpy as np

    backend = state.module()
    state.say(doing="importing the runtime for", file=file)
    for name in imported:
        with suppress(Exception):  # some modules cannot be imported by their name; opening the file will tell
            import_module(name)
    image = np.load(state.folder / "images.npy")
    gc.collect()
    is_reset = _reset_peak_memory()
    before = _memory_bytes()
    state.say(doing="opening", file=file)
    begin = time.perf_counter_ns()
    session = backend.open_session(Path(file), state.threads)
    load_ms = (time.perf_counter_ns() - begin) / 1e6
    state.say(doing="running", file=file)
    begin = time.perf_counter_ns()
    session(image)
    first_inference_ms = (time.perf_counter_ns() - begin) / 1e6
    after = _memory_bytes()
    is_known = before and after and (is_reset or after["VmHWM"] > before["VmHWM"])
    return {
        "load_ms": load_ms,
        "first_inference_ms": first_inference_ms,
        "peak_memory_bytes": after["VmHWM"] - before["VmRSS"] if is_known else None,
    }


def _reset_peak_memory() -> bool:
    """Let the kernel forget this process's peak: proc_pid_clear_refs(5)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _memory_bytes() -> dict[str, int] | None:
    """Resident memory now (VmRSS) and at its peak (VmHWM), or None off Linux."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmRSS:", "VmHWM:"))}


_ACTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "open": _open,
    "predict": _predict,
    "layers": _layers,
    "time": _time,
    "cold_start": _cold_start,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Serve requests from stdin; the arguments are the backend, the threads and the folder for arrays."""
    backend, threads, folder = sys.argv[1:] if argv is None else argv
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a runtime prints must not stand among the replies

    def say(**reply: Any) -> None:
        replies.write(json.dumps(reply) + "\n")
        replies.flush()

    state = _State(backend, int(threads), Path(folder), say)
    for line in sys.stdin:
        request = json.loads(line)
        action = _ACTIONS[request.pop("do")]
        try:
            say(**action(state, **request))
        except Exception as error:
            say(error=type(error).__name__, message=" ".join(str(error).split()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
