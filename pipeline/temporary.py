"""Temporary folders that do not stay: those of processes that were killed are removed by the next one."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "repnets-tmp-"


@contextmanager
def folder() -> Iterator[str]:
    """A temporary folder, locked by this process while it is used; the path."""
    _sweep()
    name, descriptor = _locked()
    try:
        yield name
    finally:
        shutil.rmtree(name, ignore_errors=True)
        os.close(descriptor)


def _locked() -> tuple[str, int]:
    while True:
        name = tempfile.mkdtemp(prefix=_PREFIX)
        with suppress(FileNotFoundError):  # another process may have swept it before it was locked
            descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.isdir(name):
                return name, descriptor
            os.close(descriptor)


def _sweep() -> None:
    """Remove this user's temporary folders that no process holds; the kernel unlocks those of a dead one."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            status = path.lstat()
            if status.st_uid != os.getuid() or path.is_symlink() or not path.is_dir():
                continue
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
            finally:
                os.close(descriptor)
