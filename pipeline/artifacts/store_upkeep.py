"""Look after the store: what is in it, whether it is whole, and making room. See `store`.

Entries of other users are counted, and left alone.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts import store, store_access
from pipeline.artifacts.store import ENTRY_BYTES

UNKNOWN = "unknown"
"""The stage of an entry that does not say it."""


@dataclass(frozen=True)
class Entry:
    """The results of one run of a stage.

    Attributes:
        place: its folder.
        stage: that made it.
        size_bytes: on the disk.
        used: when it was last built or read, seconds since 1970; where the disk keeps no times of reading, when built.
        is_mine: whether this user owns it.
    """

    place: Path
    stage: str
    size_bytes: int
    used: float
    is_mine: bool

    @property
    def key(self) -> str:
        """Of the store."""
        return self.place.name.partition("-")[0]


def entries() -> list[Entry]:
    """All entries, the longest unused first."""
    with suppress(FileNotFoundError, NotADirectoryError):
        found = [_entry(place) for place in (store.root() / "objects").iterdir() if place.is_dir()]
        return sorted(found, key=lambda entry: (entry.used, entry.key))
    return []


def unfinished_bytes() -> int:
    """Size of what runs that were killed have left, which the next attempt takes up."""
    return _size(store.root() / "work")


def damaged(entry: Entry) -> list[str]:
    """The parts of an entry that do not have the content that was put there; reads all of it."""
    about = entry.place / "entry.json"
    try:
        with _times_kept(about):
            outputs = [place.name for place in entry.place.iterdir() if place != about]
            return store.changed(entry.place, entry.key, outputs)
    except OSError:
        return ["entry.json"]


def surplus(
    found: Sequence[Entry], *, size_bytes: int | None = None, unused_seconds: float | None = None
) -> list[Entry]:
    """This user's entries that are to go, the longest unused first.

    Args:
        found: from `entries`.
        size_bytes: of all entries together, at most.
        unused_seconds: since an entry was last built or read, at most.
    """
    begin, chosen = time.time(), []
    left = sum(entry.size_bytes for entry in found)
    for entry in found:
        is_old = unused_seconds is not None and begin - entry.used > unused_seconds
        if entry.is_mine and (is_old or (size_bytes is not None and left > size_bytes)):
            chosen.append(entry)
            left -= entry.size_bytes
    return chosen


def remove(entry: Entry) -> bool:
    """Delete an entry. False where a run is building it at this moment, or it is not there any more."""
    with store.lock(entry.key, wait=False) as is_free:
        if not is_free or not entry.place.is_dir():
            return False
        aside = store_access.private(store_access.folder(store.root(), "work"), entry.place.name) / "thrown away"
        store_access.throw_entry_away(entry.place, aside)
        with suppress(OSError):  # an attempt that was killed has left more there
            aside.parent.rmdir()
        return True


@contextmanager
def _times_kept(file: Path) -> Iterator[os.stat_result]:
    """Its times are afterwards what they were: to look at a result is not to use it."""
    times = file.stat()
    try:
        yield times
    finally:
        with suppress(OSError):  # another user's
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def _entry(place: Path) -> Entry:
    stage, status = UNKNOWN, place.lstat()
    used = status.st_mtime
    about = place / "entry.json"
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError), _times_kept(about) as times:
        used = max(times.st_mtime, times.st_atime)
        stage = str(json.loads(about.read_bytes()[:ENTRY_BYTES])["stage"])
    return Entry(place, stage, _size(place), used, status.st_uid == os.getuid())


def _size(place: Path) -> int:
    with suppress(OSError):
        return sum(one.lstat().st_size for one in place.rglob("*") if one.is_symlink() or not one.is_dir())
    return 0
