"""Files from elsewhere: regular ones alone, since reading a pipe may wait, and reading a device end, for ever."""

import errno
import stat
from pathlib import Path


def content_of(file: Path) -> bytes:
    """The bytes of a regular file. OSError where it cannot be read, is a pipe or a device."""
    require(file)
    return file.read_bytes()


def require(file: Path) -> None:
    """OSError where there is something else than a file or a folder: a pipe, a device, a link to itself."""
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "it is no regular file", str(file))
