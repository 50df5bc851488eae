"""A watch over a process: it is killed after a time, or once a file that it writes is too large."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, Literal

MOST_BYTES = 16_000_000
"""That a command's output, or a process's log, may have. What is asked of devices is a thousandth of that."""

_EVERY_SECONDS = 0.05


@dataclass
class Watch:
    """A watch over one process.

    Attributes:
        cause: why the process was killed; None while it was not.
    """

    cause: Literal["time", "size"] | None = None
    _over: threading.Event = field(default_factory=threading.Event)

    def end(self) -> None:
        """Let the process alone from now on."""
        self._over.set()


@contextmanager
def watched(
    popen: subprocess.Popen, files: Sequence[IO[bytes]], seconds: float, most_bytes: int = MOST_BYTES
) -> Iterator[Watch]:
    """Watch a process until the block ends.

    Args:
        popen: the process, the first of its session.
        files: that it writes into.
        seconds: from now on.
        most_bytes: of each file.
    """
    watch = Watch()

    def look() -> None:
        end = time.monotonic() + seconds
        while not watch._over.wait(_EVERY_SECONDS):
            is_large = any(os.fstat(file.fileno()).st_size > most_bytes for file in files)
            if is_large or time.monotonic() > end:
                watch.cause = "size" if is_large else "time"
                kill(popen)
                return

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        watch.end()
        thread.join()


def kill(popen: subprocess.Popen) -> None:
    """Kill a process group: it may include a jump host's connection, or on this machine the command itself."""
    if popen.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
