"""The content-addressed store: results are cached by all that they depend on, and never built twice.

A key is the sha256 of the stage's name, its first-party code, its settings, the content of its inputs and the versions
of its packages. Dates and paths are not part of it, so a fresh clone finds its results.

    $REPNETS_STORE/              default: repnets in the user's cache folder
        objects/<key>/           the outputs of one run of a stage, and entry.json with their digests
        work/<key>/              temporary files of a run; `scratch` in it survives a kill
        locks/<key>              locked while a key is built, so that two runs never build it twice

This module and all that a hit imports are light: a hit takes a fraction of a second.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.artifacts.atomic import replacing
from pipeline.artifacts.digests import Inputs, code_digest, digest
from pipeline.artifacts.manifest import versions
from pipeline.errors import StageError

_ROOM = 1 << 20  # bytes; a disk with less free space counts as full

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
    key = _key(stage, settings, read, code, packages, host)

    def build_from_these(places: dict[str, Path], scratch: Path) -> None:
        build(places, scratch)
        read.require_unchanged()

    with _disk_refusals(stage), _lock(key):
        entry, hit = _entry(key, stage, {name: place.name for name, place in outputs.items()}, build_from_these)
        for name, place in outputs.items():
            _publish(next((entry / name).iterdir()), place)
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
    with _disk_refusals(stage), _lock(key):
        entry, _ = _entry(key, stage, outputs, build)
    return {name: entry / name / file for name, file in outputs.items()}


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


@contextmanager
def _disk_refusals(stage: str) -> Iterator[None]:
    """Turn what is raised where the disk refuses into a StageError that says so."""
    try:
        yield
    except Exception as error:
        reason = _cannot_write(error)
        if reason is None:
            raise
        raise StageError(
            f"{stage}: {reason}. Nothing was lost: what stood there before still does. Make room, or set "
            f"REPNETS_STORE (now {root()}) to a folder that can be written, and run again."
        ) from error


@contextmanager
def _lock(key: str) -> Iterator[None]:
    path = root() / "locks" / key
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another run is building the same; waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:  # closing the file would not do: processes that read images have it open too, until they end
            fcntl.flock(file, fcntl.LOCK_UN)


def _entry(key: str, stage: str, outputs: Mapping[str, str], build: Build) -> tuple[Path, bool]:
    """The folder of a key, built where it is missing or damaged; and whether it was there. The lock is held."""
    entry = root() / "objects" / key
    hit = _is_whole(entry, stage)
    if not hit:
        _build_entry(entry, key, stage, outputs, build)
    return entry, hit


def _is_whole(entry: Path, stage: str) -> bool:
    try:
        recorded = json.loads((entry / "entry.json").read_text())["outputs"]
        broken = [name for name, found in recorded.items() if digest(entry / name) != found]
    except FileNotFoundError:
        if not entry.exists():
            return False
        broken = ["entry.json"]
    except (ValueError, KeyError):
        broken = ["entry.json"]
    if broken:
        print(f"{stage}: {', '.join(broken)} in the store no longer has the content that was put there; "
              f"thrown away, building again", file=sys.stderr, flush=True)  # fmt: skip
        shutil.rmtree(entry)
    return not broken


def _build_entry(entry: Path, key: str, stage: str, outputs: Mapping[str, str], build: Build) -> None:
    work = root() / "work" / key
    fresh, scratch = work / "entry", work / "scratch"
    shutil.rmtree(fresh, ignore_errors=True)
    scratch.mkdir(parents=True, exist_ok=True)
    places = {name: fresh / name / file for name, file in outputs.items()}
    for place in places.values():
        place.parent.mkdir(parents=True)
    build(places, scratch)
    missing = [name for name, place in places.items() if not place.exists()]
    if missing:
        raise StageError(f"{stage} ended without writing {', '.join(missing)}; this is a defect of the stage.")
    recorded = {name: digest(fresh / name) for name in places}
    (fresh / "entry.json").write_text(json.dumps({"stage": stage, "outputs": recorded}, indent=2))
    entry.parent.mkdir(parents=True, exist_ok=True)
    os.replace(fresh, entry)
    shutil.rmtree(work)


def _cannot_write(error: Exception) -> str | None:
    """Why writing failed, if an error is about the disk; libraries hide a full disk behind errors of their own."""
    refusals = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
    if isinstance(error, OSError) and error.errno in refusals:
        return f"{error.strerror} while writing {error.filename or 'a file'}"
    if shutil.disk_usage(_nearest_folder(root())).free < _ROOM:
        return f"no space left on the disk ({error})"
    return None


def _nearest_folder(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _publish(source: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with replacing(place) as fresh:
        if source.is_dir():
            shutil.copytree(source, fresh, copy_function=shutil.copy)
        else:
            shutil.copy(source, fresh)
