"""Whose files in the store are taken, who may read and write them, and what has to be thrown away.

    REPNETS_STORE_TRUST=owner    entries of this user alone are taken (the default)
    REPNETS_STORE_TRUST=group    also those of the members of a group of this user's
    REPNETS_STORE_GROUP=name     the store belongs to this group; default: that of its folder, if it is set-group-ID

Files have the modes of the umask, and its group may read them whatever that is; only their owner may write them. A
store that may only be read gives hits: nothing of it is opened for writing for one.

An entry is held against digests that lie beside it, so whoever can write an entry can forge one. The kernel says who
wrote a file, and nobody can give a file to another user: ownership needs no key, which every stage, and so the user's
own network code, could read. An entry of a user who is not trusted is left alone; this user's own lies beside it.
"""

import grp
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

from pipeline.artifacts.atomic import set_modes
from pipeline.errors import InputError

_TRUSTS = ("owner", "group")
_DEPTH = 32  # folders in one another, more than any exported file has
_GROUP_READS, _GROUP_READS_FOLDERS, _WRITING = 0o040, 0o050, 0o022


def folder(root: Path, name: str) -> Path:
    """A folder of the store, made where it is missing; with the group's access where the store has a group."""
    path = root / name
    for place in (root, path):
        if not os.path.isdir(place):
            place.mkdir(parents=True, exist_ok=True)
            set_modes(place, folders=_GROUP_READS_FOLDERS, denied=_WRITING)
    gid = _group(root)
    for place in (root, path) if gid is not None else ():
        status = place.stat()
        if status.st_uid == os.getuid() and (status.st_gid != gid or status.st_mode & 0o2070 != 0o2070):
            os.chown(place, -1, gid)
            place.chmod(stat.S_IMODE(status.st_mode) | 0o2070)
    return path


def mine(folder: Path, key: str) -> Path:
    """The path of a key in a folder of the store: free, or of a trusted user; else one of this user's own."""
    path, trust = folder / key, _trust()
    if os.path.lexists(path) and not _is_trusted(path.lstat(), trust):
        return folder / f"{key}-{os.getuid()}"
    return path


def private(folder: Path, key: str) -> Path:
    """A folder of this user's alone for temporary files, new or with what an earlier run left in it."""
    path = folder / key
    if os.path.lexists(path) and path.lstat().st_uid != os.getuid():
        path = folder / f"{key}-{os.getuid()}"
    if os.path.lexists(path):
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
            throw_away(path)
    path.mkdir(exist_ok=True)
    path.chmod(0o700)
    return path


def open_lock(path: Path, root: Path) -> int:
    """Open a file to lock, which is made where it is missing; links are not followed, and nothing is cut off."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        throw_away(path)
    try:
        descriptor = os.open(path, flags, 0o644)
    except PermissionError:  # it may be another member's
        if not path.exists():
            raise
        return os.open(path, flags & ~(os.O_RDWR | os.O_CREAT))
    if os.fstat(descriptor).st_uid == os.getuid():
        members = 0o060 if _group(root) is not None else _GROUP_READS
        os.fchmod(descriptor, stat.S_IMODE(os.fstat(descriptor).st_mode) | members)
    return descriptor


def share(entry: Path, root: Path) -> None:
    """Give a new entry the modes of the store: only its owner may write its files; a group may delete it."""
    gid = _group(root)
    for place in (entry, *entry.rglob("*")) if gid is not None else ():
        os.chown(place, -1, gid, follow_symlinks=False)
    set_modes(entry, files=_GROUP_READS, folders=_GROUP_READS_FOLDERS if gid is None else 0o2070, denied=_WRITING)


def untrusted(entry: Path) -> list[str]:
    """What an entry must not hold, by its path: links, pipes and the like, and what others may have written."""
    found, waiting, trust = [], [(entry, 0)], _trust()
    while waiting:
        place, depth = waiting.pop()
        status = place.lstat()
        is_folder, is_file = stat.S_ISDIR(status.st_mode), stat.S_ISREG(status.st_mode)
        if not (is_folder or is_file) or depth > _DEPTH or not _is_trusted(status, trust):
            found.append(place.relative_to(entry).as_posix())
        elif is_folder:
            waiting += [(inner, depth + 1) for inner in place.iterdir()]
    return found


def throw_entry_away(entry: Path, aside: Path) -> None:
    """Delete an entry. It is moved in one step first, so that whoever reads it meanwhile never takes a part of it."""
    throw_away(aside)
    with suppress(FileNotFoundError):
        os.replace(entry, aside)
    throw_away(aside)


def throw_away(path: Path) -> None:
    """Delete whatever lies at a path; a link, not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_trusted(status: os.stat_result, trust: str) -> bool:
    """Whether only trusted users can have written something. Folders may be writable: their files tell."""
    is_in_group = status.st_gid in (os.getegid(), *os.getgroups())
    if status.st_uid != os.getuid() and not (trust == "group" and is_in_group):
        return False
    writable = 0o002 if trust == "group" else 0o022
    return not (stat.S_ISREG(status.st_mode) and status.st_mode & writable)


def _trust() -> str:
    named = os.environ.get("REPNETS_STORE_TRUST") or "owner"
    if named not in _TRUSTS:
        raise InputError(f"REPNETS_STORE_TRUST is `{named[:80]}`; set it to {' or '.join(_TRUSTS)}.")
    return named


def _group(root: Path) -> int | None:
    """The group that a store belongs to; None if it is one user's."""
    if named := os.environ.get("REPNETS_STORE_GROUP"):
        try:
            gid = int(named) if named.isdecimal() else grp.getgrnam(named).gr_gid
        except KeyError:
            raise InputError(f"REPNETS_STORE_GROUP: this machine has no group `{named[:80]}`.") from None
        if os.geteuid() != 0 and gid not in (os.getegid(), *os.getgroups()):
            raise InputError(f"REPNETS_STORE_GROUP: you are not in the group `{named[:80]}`; `id -Gn` lists yours.")
        return gid
    status = root.stat()
    return status.st_gid if status.st_mode & stat.S_ISGID else None
