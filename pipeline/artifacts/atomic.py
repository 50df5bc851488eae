"""Write a file or folder that appears at its path whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(place: Path) -> Iterator[Path]:
    """A temporary path beside a file or folder to write to; at the end it replaces the file or folder.

    If the block raises, the file or folder stays as it was, and the temporary path is removed. A file never replaces a
    folder. It has the mode that `open()` would have given it, also where a library wrote a private temporary file.
    """
    fresh = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield fresh
        set_modes(fresh)
        if fresh.is_dir() and place.is_dir():  # a folder that holds files cannot be replaced in one step
            old = place.with_name(f"{fresh.name}.old")
            os.replace(place, old)
            os.replace(fresh, place)
            shutil.rmtree(old)
        else:
            os.replace(fresh, place)
    finally:
        if fresh.is_dir():
            shutil.rmtree(fresh)
        else:
            fresh.unlink(missing_ok=True)


def set_modes(place: Path, *, folders: int = 0, files: int = 0, denied: int = 0) -> None:
    """Give a file, or a folder and all in it, the modes of new ones: 0666 or 0777 less the umask.

    A program stays one, a folder keeps its set-group-ID bit, and links are left alone.

    Args:
        place: of the file or folder.
        folders, files: mode bits that each has besides.
        denied: mode bits that none has.
    """
    new = 0o777 & ~_umask()
    for path in (place, *(Path(top, name) for top, inner, names in os.walk(place) for name in inner + names)):
        if path.is_symlink() or not path.exists():
            continue
        mode = path.stat().st_mode
        if path.is_dir():
            path.chmod((new & ~denied) | folders | (mode & 0o2000))
        else:
            path.chmod((new & ~denied & (0o777 if mode & 0o100 else 0o666)) | files)


def _umask() -> int:
    with suppress(OSError), open("/proc/self/status", encoding="utf-8") as status:
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    umask = os.umask(0o077)  # there is no other way to read it
    os.umask(umask)
    return umask
