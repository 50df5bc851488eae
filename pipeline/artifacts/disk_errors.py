"""What the disk refuses, as a StageError: it is full, it may not be written, or something stands in the way."""

import errno
import os
import pwd
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import StageError

_ROOM = 1 << 20  # bytes; a disk with less free space counts as full
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM)
_ODD = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)  # where a folder of the store should be


@contextmanager
def explained(stage: str, store: Path) -> Iterator[None]:
    """Turn what is raised in the block where the disk refuses into a StageError that says so.

    Args:
        stage: name of the stage that reads and writes.
        store: folder of the store.
    """
    try:
        yield
    except Exception as error:
        refusal = _refusal(error, store)
        if refusal is None:
            raise
        reason, remedy = refusal
        raise StageError(
            f"{stage}: {reason}. Nothing was lost: what stood there before still does. {remedy}, and run again."
        ) from error


def _refusal(error: Exception, store: Path) -> tuple[str, str] | None:
    """Why the disk refused, and what to do, if an error is about the disk.

    Libraries hide a full disk behind errors of their own.
    """
    full = [place for place in (store, Path.cwd(), Path(tempfile.gettempdir())) if _is_full(place)]
    mounts = " and ".join(dict.fromkeys(str(_mount(place)) for place in full))
    elsewhere = f"set REPNETS_STORE (now {store}) to a folder that can be written"
    if isinstance(error, OSError):
        name = error.filename
        reason = f"{error.strerror} while writing {name or 'a file'}"
        is_in_store = isinstance(name, str | os.PathLike) and Path(name).is_relative_to(store)
        if error.errno in _FULL:
            at = f"; the file system at {mounts} is full" if full and error.errno != errno.EFBIG else ""
            return f"{reason}{at}", f"Make room there, or {elsewhere}"
        if error.errno == errno.EROFS:
            return reason, f"Mount it for writing, or {elsewhere}" if is_in_store else "Name another place"
        if error.errno in _DENIED:
            return _denial(error, elsewhere if is_in_store else "name another place")
        if error.errno in _ODD and is_in_store:
            return reason, f"Remove what stands there, or {elsewhere}"
    if full:
        return f"no space left on the file system at {mounts} ({error})", f"Make room there, or {elsewhere}"
    return None


def _denial(error: OSError, otherwise: str) -> tuple[str, str]:
    """Whose permission is missing where, and what to do."""
    if not isinstance(error.filename, str | os.PathLike):
        return f"{error.strerror} while writing a file", f"See who may write there, or {otherwise}"
    path = Path(error.filename)
    there = next(one for one in (path, *path.absolute().parents) if os.path.lexists(one))
    act = "reading" if there == path and not os.access(path, os.R_OK) else "writing"
    uid = there.lstat().st_uid
    whose = "this user's own" if uid == os.getuid() else f"of {_user(uid)}, and this is {_user(os.getuid())}"
    reason = f"{error.strerror} while {act} {path}: {there} is {whose}"
    return reason, f"Get the permission there (chmod, or a group that shares it), or {otherwise}"


def _user(uid: int) -> str:
    try:
        return f"`{pwd.getpwuid(uid).pw_name}`"
    except KeyError:
        return f"the user {uid}"


def _is_full(place: Path) -> bool:
    free = os.statvfs(_nearest_folder(place))
    return free.f_bavail * free.f_frsize < _ROOM or (free.f_files > 0 and free.f_favail == 0)


def _mount(place: Path) -> Path:
    folder = _nearest_folder(place).resolve()
    return next(one for one in (folder, *folder.parents) if one.is_mount())


def _nearest_folder(path: Path) -> Path:
    # Path.exists raises where a folder may not be searched
    return next(folder for folder in (path, *path.parents) if os.path.exists(folder))
