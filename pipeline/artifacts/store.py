"""The content-addressed store: results are cached by all that they depend on, and never built twice.

A key is the sha256 of the stage's name, its first-party code, its settings, the content of its inputs and the versions
of its packages. Dates and paths are not part of it, so a fresh clone finds its results.

    $REPNETS_STORE/              default: repnets in the user's cache folder
        objects/<key>/           the outputs of one run of a stage, and entry.json with their digests
        work/<key>/              temporary files of a run; `scratch` in it survives a kill
        locks/<key>              locked while a key is built, so that two runs never build it twice

An entry of any other shape than this module writes is thrown away. Whose entries are taken: `store_access`.
A hit takes no lock and writes nothing into the store, so one that can only be read gives hits.

This module and all that a hit imports are light: a hit takes a fraction of a second.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.artifacts import disk_errors, store_access
from pipeline.artifacts.atomic import replacing
from pipeline.artifacts.digests import Inputs, code_digest, digest
from pipeline.artifacts.manifest import versions
from pipeline.errors import StageError

ENTRY_BYTES = 1 << 20
"""That entry.json has, at most."""

Build = Callable[[dict[str, Path], Path], None]


def root() -> Path:
    """Folder of the store: $REPNETS_STORE, else `repnets` in the user's cache folder."""
    if named := os.environ.get("REPNETS_STORE"):
        return Path(named).expanduser().absolute()
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache_home) / "repnets"


def cached(
    stage: str,
    *,
    settings: Mapping[str, Any],
    inputs: Inputs | Mapping[str, Path | None],
    outputs: Mapping[str, Path],
    code: Sequence[str],
    packages: Sequence[str],
    build: Build,
    host: str | None = None,
) -> bool:
    """Copy the outputs of a stage from the store, or build them if they are not there.

    Args:
        stage: name of the stage.
        settings: of the stage, as JSON types.
        inputs: files and folders that it reads; their content is part of the key, names and dates are not; None for an
            input that is not given. They are read again after a build, which must have seen the content of the key.
        outputs: paths of its results. Each appears by a rename, whole or not at all.
        code: modules whose code the result depends on; their imports are included.
        packages: distributions whose versions the result depends on.
        build: called on a miss with a path to write for each output, and a temporary folder that survives a kill and is
            passed to the next attempt.
        host: fingerprint of this machine, for results that are valid only there.

    Returns:
        True if the outputs came from the store, False if they were built now.

    Raises:
        StageError: the disk is full or the store cannot be written; earlier results stay in place.
        InputError: an input was replaced while the stage ran; nothing is kept.
    """
    read = inputs if isinstance(inputs, Inputs) else Inputs(inputs)
    names = {name: place.name for name, place in outputs.items()}

    def build_from_these(places: dict[str, Path], scratch: Path) -> None:
        build(places, scratch)
        read.require_unchanged()

    with disk_errors.explained(stage, root()):
        key = _key(stage, settings, read, code, packages, host)
        hit = _publish_whole(key, outputs)
        if not hit:
            with lock(key):
                entry, hit = _entry(key, stage, names, build_from_these)
                for name, place in outputs.items():
                    _publish(_file_in(entry / name), place)
    print(f"{stage}: {'from the store' if hit else 'built'} ({key[:12]})", flush=True)
    return hit


def kept(
    stage: str,
    *,
    settings: Mapping[str, Any],
    outputs: Mapping[str, str],
    code: Sequence[str],
    packages: Sequence[str],
    build: Build,
) -> dict[str, Path]:
    """Results that are read where they lie in the store, since a copy of each would be too large.

    Args:
        stage, settings, code, packages, build: as for `cached`.
        outputs: name of the file of each output.

    Returns:
        Where each output lies. Its content has been held against its digest; it must not be changed.

    Raises:
        StageError: as for `cached`.
    """
    key = _key(stage, settings, Inputs({}), code, packages, None)
    with disk_errors.explained(stage, root()):
        entry = _whole(key, outputs)
        if entry is None:
            with lock(key):
                entry, _ = _entry(key, stage, outputs, build)
        return {name: _file_in(entry / name) for name in outputs}


def _key(
    stage: str,
    settings: Mapping[str, Any],
    inputs: Inputs,
    code: Sequence[str],
    packages: Sequence[str],
    host: str | None,
) -> str:
    parts = {
        "stage": stage,
        "code": code_digest(*code),
        "settings": settings,
        "inputs": {name: inputs.sha256.get(name) for name in inputs.paths},
        "packages": versions(*packages),
        "python": list(sys.version_info[:2]),
        "host": host,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _whole(key: str, outputs: Iterable[str]) -> Path | None:
    """The entry of a key as it lies there, without a lock; None where it is missing, damaged, or may not be read."""
    entry = store_access.mine(root() / "objects", key)
    try:
        return None if not os.path.lexists(entry) or _damage(entry, key, outputs) else entry
    except (FileNotFoundError, PermissionError):  # what it is shows under the lock
        return None


def _publish_whole(key: str, outputs: Mapping[str, Path]) -> bool:
    """Publish the outputs of an entry without a lock; False where there is no whole one, or not until the end."""
    entry = store_access.mine(root() / "objects", key)
    try:
        held = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False

    def is_there() -> bool:  # while it is open, no other folder has its number
        return os.path.lexists(entry) and os.path.samestat(os.fstat(held), os.lstat(entry))

    try:
        if _whole(key, outputs) is None:
            return False
        for name, place in outputs.items():
            _publish(_file_in(entry / name), place, is_there)
    except OSError:
        if is_there():
            raise
        return False
    finally:
        os.close(held)
    return True


@contextmanager
def lock(key: str, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a key for a while. False where another run holds it, and `wait` is off."""
    try:
        locks = store_access.folder(root(), "locks")
        descriptor = store_access.open_lock(store_access.mine(locks, key), root())
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        yield True  # nothing can be written here either, and what writes says so
        return
    with open(descriptor) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                yield False
                return
            print("another run is building the same; waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield True
        finally:  # closing the file would not do: processes that read images have it open too, until they end
            fcntl.flock(file, fcntl.LOCK_UN)


def _entry(key: str, stage: str, outputs: Mapping[str, str], build: Build) -> tuple[Path, bool]:
    """The folder of a key, built where it is missing or damaged; and whether it was there. The lock is held."""
    objects = root() / "objects"
    entry = store_access.mine(objects, key)
    hit = _is_whole(entry, key, stage, outputs)
    if not hit:
        if entry.name != key:
            print(f"{stage}: the store's entry is of another user, and REPNETS_STORE_TRUST does not let it be taken")
        _build_entry(entry, key, stage, outputs, build)
    return entry, hit


def _is_whole(entry: Path, key: str, stage: str, outputs: Mapping[str, str]) -> bool:
    if not os.path.lexists(entry):
        return False
    broken = _damage(entry, key, outputs)
    if broken:
        store_access.throw_entry_away(entry, _work(key) / "thrown away")
        print(f"{stage}: {', '.join(broken[:3])} in the store no longer has the content that was put there; "
              f"thrown away, building again", file=sys.stderr, flush=True)  # fmt: skip
    return not broken


def _damage(entry: Path, key: str, outputs: Iterable[str]) -> list[str]:
    """The parts of an entry that are not what was put there. PermissionError where another user's cannot be read."""
    try:
        return store_access.untrusted(entry) or changed(entry, key, outputs)
    except PermissionError as error:
        if entry.lstat().st_uid != os.getuid():
            raise
        return [Path(error.filename).name]
    except (FileNotFoundError, NotADirectoryError) as error:  # it is being thrown away or damaged at this moment
        return [Path(error.filename).name]


def changed(entry: Path, key: str, outputs: Iterable[str]) -> list[str]:
    """The parts of an entry that are not what its entry.json says. PermissionError where that cannot be read."""
    try:
        with (entry / "entry.json").open("rb") as file:
            document = json.loads(file.read(ENTRY_BYTES))
        recorded = document["outputs"]
        if document["key"] != key or not isinstance(recorded, dict) or set(recorded) != set(outputs):
            return ["entry.json"]
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ["entry.json"]
    return [name for name in outputs if not _holds(entry / name, recorded[name])]


def _holds(place: Path, recorded: str) -> bool:
    return place.is_dir() and len(os.listdir(place)) == 1 and digest(place) == recorded


def _work(key: str) -> Path:
    return store_access.private(store_access.folder(root(), "work"), key)


def _build_entry(entry: Path, key: str, stage: str, outputs: Mapping[str, str], build: Build) -> None:
    work = _work(key)
    fresh, scratch = work / "entry", work / "scratch"
    store_access.throw_away(fresh)
    if scratch.is_symlink() or not scratch.is_dir():
        store_access.throw_away(scratch)
        scratch.mkdir()
    places = {name: fresh / name / file for name, file in outputs.items()}
    for place in places.values():
        place.parent.mkdir(parents=True)
    build(places, scratch)
    missing = [name for name, place in places.items() if not place.exists()]
    if missing:
        raise StageError(f"{stage} ended without writing {', '.join(missing)}; this is a defect of the stage.")
    recorded = {name: digest(fresh / name) for name in places}
    (fresh / "entry.json").write_text(json.dumps({"stage": stage, "key": key, "outputs": recorded}, indent=2))
    store_access.folder(root(), "objects")
    store_access.share(fresh, root())
    os.replace(fresh, entry)
    shutil.rmtree(work)


def _file_in(folder: Path) -> Path:
    """The file or folder of an output, the only one in its folder."""
    for name in os.listdir(folder):
        return folder / name
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))


def _publish(source: Path, place: Path, is_there: Callable[[], bool] = lambda: True) -> None:
    """Copy an output to its place, if the entry is still there when all of it has been copied."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with replacing(place) as fresh:
        if source.is_dir():
            shutil.copytree(source, fresh, copy_function=shutil.copy)
        else:
            shutil.copy(source, fresh)
        if not is_there():
            raise FileNotFoundError(errno.ENOENT, "thrown away by another run", str(source))
