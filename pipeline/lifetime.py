"""A run of Snakemake and its stages end together, however the run ends; and a run that was killed leaves no lock.

While it runs, a run holds a lock (flock) on a file, which the kernel releases when the process dies, by kill -9 too.
Each stage waits for that lock beside its work: whoever gets it knows that the run is over, and ends. By the same lock
the next run knows that Snakemake's own lock on the folder is of a dead run.
"""

import atexit
import fcntl
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType

_RUN = "REPNETS_RUN"  # environment variable: the file of the run that a stage belongs to
_RUNS, _LOCKS = Path(".snakemake/repnets"), Path(".snakemake/locks")
_GRACE_SECONDS = 5.0


def begin_run() -> None:
    """Note that a run of Snakemake began in this process, in its folder; its stages end with it.

    SIGTERM and SIGINT end its stages at once; Snakemake itself would wait for them.
    """
    _RUNS.mkdir(parents=True, exist_ok=True)
    path = _RUNS.absolute() / str(os.getpid())
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    fcntl.flock(file, fcntl.LOCK_EX)
    os.utime(file)
    os.environ[_RUN] = str(path)

    def end(_signal: int, _frame: FrameType | None) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)
        raise KeyboardInterrupt

    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, end)
    atexit.register(path.unlink, missing_ok=True)


def release_locks_of_dead_runs() -> None:
    """Remove Snakemake's locks on this folder where every run that held one is dead, so that no --unlock is needed."""
    dead, alive = [], False
    for path in sorted(_RUNS.glob("*")):
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                dead.append(path)
            except BlockingIOError:
                alive = True
    if not dead or alive:
        return
    latest = max(path.stat().st_mtime for path in dead)
    for lock in _LOCKS.glob("*.lock"):
        if lock.stat().st_mtime <= latest:  # a newer one is of a run that has not noted itself yet
            lock.unlink(missing_ok=True)
    for path in dead:
        path.unlink(missing_ok=True)


def end_with_run() -> None:
    """End this stage with the run that it belongs to, and by SIGTERM within seconds, its temporary files removed."""
    own = os.getpid()

    def end(_signal: int, _frame: FrameType | None) -> None:
        if os.getpid() != own:  # a process that reads images
            os._exit(128 + signal.SIGTERM)
        hurry = threading.Timer(_GRACE_SECONDS, os._exit, [128 + signal.SIGTERM])
        hurry.daemon = True
        hurry.start()
        sys.exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    if path := os.environ.get(_RUN):
        threading.Thread(target=_wait_for_end, args=(path,), daemon=True).start()


def _wait_for_end(path: str) -> None:
    with suppress(FileNotFoundError), open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
    print("the run that this stage belongs to has ended, and so does the stage", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)


def end_with_parent() -> None:
    """Let the kernel kill this process when the one that started it dies (Linux)."""
    if sys.platform != "linux":
        return
    import ctypes

    set_parent_death_signal = 1  # prctl(2)
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() == 1:
        os._exit(128 + signal.SIGKILL)
