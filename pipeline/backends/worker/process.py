"""A worker process, which serves an exported file, here or on a device. If it dies, the error quotes its last output.

`worker.client` explains why there are such processes; they run `worker.server`.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipeline import errors, temporary
from pipeline.artifacts.source_files import PROJECT
from pipeline.backends.worker import replies, server
from pipeline.backends.worker.remote import Remote
from pipeline.devices.watch import MOST_BYTES, watched

if TYPE_CHECKING:
    import numpy as np

_QUOTED_LINES, _QUOTED = 3, 300  # lines, characters of each
_MESSAGE = 1000  # characters of an error of a runtime
_PATIENCE_SECONDS = 600
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass
class Process:
    """A running `pipeline.backends.worker.server`.

    Attributes:
        folder: for arrays and its log.
        on: the device that it runs on; None for this machine.
        doing, subject: its latest report of what it does, and with which file.
        request: the last one.
    """

    popen: subprocess.Popen[str]
    backend: str
    folder: Path
    on: Remote | None = None
    doing: str = "starting"
    subject: str = field(default="the exported files")
    request: dict[str, Any] = field(default_factory=dict)

    def give(self, image: "np.ndarray") -> None:
        """Write one or several images where the process reads them."""
        import numpy as np

        np.save(self.folder / "images.npy", np.ascontiguousarray(image, dtype=np.float32))
        if self.on is not None:
            self.on.give(self.folder / "images.npy")

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        self.send(do, **request)
        return self.receive()

    def send(self, do: str, **request: Any) -> None:
        self.doing, self.subject = "starting", request.get("file", self.subject)
        self.request = {"do": do, **request}
        with suppress(BrokenPipeError):  # the process has died: `receive` says so
            self.popen.stdin.write(json.dumps(self.request) + "\n")
            self.popen.stdin.flush()

    def receive(self) -> dict[str, Any]:
        if self.on is None:
            return self._reply()
        # over a link, a missing reply may have many causes
        with (self.folder / "log").open("rb") as log, watched(self.popen, (log,), _PATIENCE_SECONDS) as watch:
            try:
                return self._reply()
            except (errors.DeviceError, errors.StageError):
                if watch.cause is None:
                    raise
        if watch.cause == "size":
            raise self.on.device.too_much(MOST_BYTES)
        raise errors.DeviceError(
            f"{self.on.device.name}: the process of the {self.backend} runtime has not answered for "
            f"{_PATIENCE_SECONDS} s while {self.doing} {self.subject}, and was ended. See whether the device "
            f"is busy or out of memory, and run again.{_last_output(self.folder)}"
        )

    def _reply(self) -> dict[str, Any]:
        while line := self.popen.stdout.readline(replies.MOST_BYTES):
            reply = self._checked(line)
            if "doing" in reply:
                self.doing, self.subject = reply["doing"], reply["file"]
            elif "error" in reply:
                raise _as_exception(reply, self)
            else:
                return reply
        raise _death(self.popen.wait(), self)

    def _checked(self, line: str) -> dict[str, Any]:
        try:
            reply = replies.parse(line)
            if self.on is not None:
                replies.require(reply, line, self.request)
            return reply
        except ValueError as error:
            if self.on is not None:
                raise self.on.device.no_answer(f"to `{self.request['do']}`, {error}") from None
            raise errors.StageError(
                f"{self.subject}: the process of the {self.backend} runtime answers {error}.{_last_output(self.folder)}"
            ) from None


@contextmanager
def opened(
    backend: str, threads: int, image: "np.ndarray | None" = None, on: Remote | None = None
) -> Iterator[Process]:
    """Start a worker process, and end it.

    Args:
        backend: module under pipeline.backends, or the dotted name of one elsewhere.
        threads: for the runtime.
        image: float32, for the process to read; None if it is given later, or not at all.
        on: the device that it runs on; None for this machine.
    """
    limits = {name: str(threads) for name in _THREAD_VARIABLES}
    with temporary.folder() as name:
        folder = Path(name)
        with (folder / "log").open("wb") as log, _started(backend, threads, limits, name, log, on) as popen:
            process = Process(popen, backend, folder, on)
            try:
                if image is not None:
                    process.give(image)
                yield process
                if on is not None:
                    on.used_seconds.append(process.ask("usage")["cpu_seconds"])
            finally:
                popen.kill()  # it has answered every request, so nothing is lost
                with suppress(BrokenPipeError):  # it died before it read a request
                    popen.stdin.close()


def _started(
    backend: str, threads: int, limits: Mapping[str, str], folder: str, log: IO[bytes], on: Remote | None
) -> subprocess.Popen[str]:
    if on is not None:
        return on.start(threads, limits, log)
    path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", server.__name__, backend, str(threads), folder],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
        env=os.environ | limits | {"PYTHONPATH": path, "TMPDIR": folder},
    )  # fmt: skip


def _as_exception(reply: dict[str, Any], process: Process) -> Exception:
    kind, message = reply["error"], reply["message"]
    if kind in ("InputError", "GateError", "StageError"):
        if process.on is not None:  # the file was checked here, so it is the device that cannot use it
            return errors.DeviceError(f"{process.on.device.name}: {message[:_MESSAGE]}")
        return getattr(errors, kind)(message[:_MESSAGE])
    return errors.StageError(
        f"{process.subject}: the {process.backend} runtime failed while {process.doing} it: {kind}: "
        f"{message[:_MESSAGE].rstrip('.')}. Export the file again; if it fails again, this runtime cannot run this "
        f"network.{_last_output(process.folder)}"
    )


def _death(returncode: int, process: Process) -> Exception:
    """The error of a worker, or of the link to it, that ended without a reply."""
    if process.on is not None:
        said = (process.folder / "log").read_bytes().decode(errors="replace")
        if trouble := process.on.device.explain(returncode, said):
            return trouble
        returncode = 128 - returncode if returncode > 128 else returncode
    return errors.StageError(_death_message(returncode, process))


def _death_message(returncode: int, process: Process) -> str:
    """What happened to a worker that ended without a reply, why, and how to fix it."""
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
        f"{remedy}.{_last_output(process.folder)}"
    )


def _last_output(folder: Path) -> str:
    lines = (folder / "log").read_bytes().decode(errors="replace").splitlines()
    said = [" ".join(line.split())[:_QUOTED] for line in lines if line.strip()][-_QUOTED_LINES:]
    return f" It said last: {' | '.join(said)}" if said else ""
