"""Files from elsewhere: regular ones alone, since reading a pipe may wait, and reading a device end, for ever."""

import errno
import stat
import zipfile
from pathlib import Path
from typing import BinaryIO


def content_of(file: Path, most_bytes: int | None = None) -> bytes:
    """The bytes of a regular file.

    Args:
        file: or a link to it.
        most_bytes: that it may have; None: any number.

    Raises:
        OSError: it cannot be opened, or is a folder, a pipe or a device.
        ValueError: it is larger.
    """
    require(file)
    with file.open("rb") as opened:
        content = opened.read() if most_bytes is None else opened.read(most_bytes + 1)
    if most_bytes is not None and len(content) > most_bytes:
        raise ValueError(f"it has more than {most_bytes:,} bytes")
    return content


def require(file: Path) -> None:
    """OSError where there is something else than a file or a folder: a pipe, a device, a link to itself."""
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "it is no regular file", str(file))


def is_zip(file: Path | BinaryIO) -> bool:
    """Whether a file ends as a zip archive does; Python's own function raises for one that spans several disks."""
    try:
        return zipfile.is_zipfile(file)
    except zipfile.BadZipFile:
        return False
