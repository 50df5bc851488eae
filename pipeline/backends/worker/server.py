"""The process that an exported file runs in: `python -m pipeline.backends.worker.server BACKEND THREADS FOLDER`.

It serves one file for its whole life, because a runtime's number of threads and its use of memory belong to a process.
`worker.client` starts it and sends requests; requests and replies are one line of JSON each over stdin and stdout,
arrays are .npy files in the folder, and the output of a runtime goes to stderr.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import lifetime
from pipeline.backends import load_runtime
from pipeline.backends.runtime import Runtime, Session

if TYPE_CHECKING:
    import numpy as np

UNTIMED_MS = 2.0


@dataclass
class _State:
    """The state of the process between requests.

    Attributes:
        session: of the open file, for `predict`.
        run: runs the open file once on the one image, and returns the ms.
        file: path of the open file.
    """

    backend: str
    threads: int
    folder: Path
    say: Callable[..., None]
    session: "Session | None" = None
    run: Callable[[], float] | None = None
    file: str = field(default="")

    def runtime(self) -> Runtime:
        return load_runtime(self.backend)

    def image(self) -> "np.ndarray":
        import numpy as np

        return np.load(self.folder / "images.npy")


def _open(state: _State, *, file: str, session: str) -> dict[str, Any]:
    runtime = state.runtime()
    openers = {
        "own": runtime.open_session,
        "check": runtime.open_check_session or runtime.open_session,
        "exact": runtime.open_exact_session,
    }
    state.say(doing="opening", file=file)
    state.session, state.file = openers[session](Path(file), state.threads), file
    return {}


def _predict(state: _State, *, batch: int) -> dict[str, Any]:
    import numpy as np

    state.say(doing="predicting with", file=state.file)
    images = np.load(state.folder / "images.npy", mmap_mode="r")
    rows = []
    for start in range(0, len(images), batch):
        real = images[start : start + batch]
        fed = np.zeros((batch, *images.shape[1:]), dtype=np.float32)
        fed[: len(real)] = real
        given = [np.asarray(one, dtype=np.float32).reshape(batch, -1) for one in state.session(fed)]
        rows.append(np.concatenate(given, axis=1)[: len(real)])
    np.save(state.folder / "numbers.npy", np.concatenate(rows))
    return {}


def _layers(state: _State, *, file: str, exact: bool) -> dict[str, Any]:
    import numpy as np

    state.say(doing="reading layer by layer", file=file)
    outputs = state.runtime().outputs_by_layer(Path(file), state.image(), exact=exact)
    for index, output in enumerate(outputs.values()):
        np.save(state.folder / f"layer{index}.npy", output)
    return {"names": list(outputs)}


def _prepare(state: _State, *, file: str, imported: Sequence[str]) -> dict[str, Any]:
    """Import what opening such a file will import, so that Python's part of a start is not the network's."""
    state.say(doing="importing the runtime for", file=file)
    state.runtime()
    for name in imported:
        with suppress(Exception):  # some modules cannot be imported by their name; opening the file will tell
            import_module(name)
    return {}


def _start(state: _State, *, file: str) -> dict[str, Any]:
    """Open a file on the target's own runtime and run it once; what that took, and what it imported."""
    import gc

    image, known = state.image(), set(sys.modules)
    gc.collect()
    is_reset = _reset_peak_memory()
    before = _memory_bytes()
    state.say(doing="opening", file=file)
    begin = time.perf_counter_ns()
    state.run, state.file = _runner(state, file, image), file
    load_ms = _since_ms(begin)
    state.say(doing="running", file=file)
    begin = time.perf_counter_ns()
    state.run()
    first_inference_ms = _since_ms(begin)
    after = _memory_bytes()
    is_known = before and after and (is_reset or after["VmHWM"] > before["VmHWM"])
    gc.collect()
    gc.disable()
    return {
        "imported": [name for name in sys.modules if name not in known],
        "load_ms": load_ms,
        "first_inference_ms": first_inference_ms,
        "peak_memory_bytes": after["VmHWM"] - before["VmRSS"] if is_known else None,
    }


def _runner(state: _State, file: str, image: "np.ndarray") -> Callable[[], float]:
    """Runs the file once, and gives the ms by the device's own clock where the backend has one."""
    runtime = state.runtime()
    if runtime.open_clock:
        return runtime.open_clock(Path(file), state.threads, image)
    session = runtime.open_session(Path(file), state.threads)

    def run() -> float:
        begin = time.perf_counter_ns()
        session(image)
        return _since_ms(begin)

    return run


def _block(state: _State, *, runs: int) -> dict[str, Any]:
    """A block of timed runs. The ones before it are not: another process has had the caches meanwhile."""
    state.say(doing="timing", file=state.file)
    begin = time.perf_counter_ns()
    state.run()
    while _since_ms(begin) < UNTIMED_MS:
        state.run()
    return {"ms": [state.run() for _ in range(runs)]}


def _time_files(state: _State, *, files: Mapping[str, str], **how_long: Any) -> dict[str, Any]:
    state.say(doing="timing", file=", ".join(files.values()))
    time_files = state.runtime().time_files
    places = {form: Path(file) for form, file in files.items()}
    rounds = time_files and time_files(places, state.image(), **how_long)
    return {"ms": rounds and {form: [list(map(float, one)) for one in taken] for form, taken in rounds.items()}}


def _transfer(state: _State, *, file: str) -> dict[str, Any]:
    state.say(doing="timing the transfers of", file=file)
    transfer_ms = state.runtime().transfer_ms
    return {"ms": transfer_ms and transfer_ms(Path(file), state.image())}


def _profile(state: _State, *, file: str, runs: int) -> dict[str, Any]:
    state.say(doing="profiling", file=file)
    profile = state.runtime().profile
    return {"layers": profile and profile(Path(file), state.threads, state.image(), runs)}


def _usage(state: _State) -> dict[str, Any]:
    """CPU time of this process so far."""
    return {"cpu_seconds": time.process_time()}


def _since_ms(begin: int) -> float:
    return (time.perf_counter_ns() - begin) / 1e6


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
    "prepare": _prepare,
    "start": _start,
    "block": _block,
    "time_files": _time_files,
    "transfer": _transfer,
    "profile": _profile,
    "usage": _usage,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Serve requests from stdin; the arguments are the backend, the threads and the folder for arrays."""
    lifetime.end_with_parent()
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
