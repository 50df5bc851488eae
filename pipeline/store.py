"""The content-addressed store: a result is kept under everything that shaped it, and never built twice.

A key is the sha256 of the stage's name, its first-party code, its settings, the content of its inputs
and the versions of the packages it uses. Time stamps and paths play no part, so a fresh clone hits.

    $REPNETS_STORE/              default: repnets in the user's cache folder
        objects/<key>/           the outputs of one run of a stage, and entry.json with their digests
        work/<key>/              what a run is writing now; `scratch` in it survives a kill
        locks/<key>              held while a key is built, so that two runs never build it twice

This module and everything on the way to a hit imports nothing heavy: a hit costs a fraction of a second.
"""

import ast
import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from pipeline import sources
from pipeline.errors import StageError
from pipeline.manifest import versions

_ROOM = 1 << 20  # bytes; with less left on the disk than this, it counts as full

TIME_STAMP = ".snakemake_timestamp"
_PLUMBING = {
    f"pipeline.{name}" for name in ("config", "errors", "options", "sources", "stage", "store", "strict", "targets")
}

Build = Callable[[dict[str, Path], Path], None]


def root() -> Path:
    """Folder of the store: $REPNETS_STORE, else `repnets` in the user's cache folder."""
    if named := os.environ.get("REPNETS_STORE"):
        return Path(named).expanduser().absolute()
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache_home) / "repnets"


def digest(path: Path) -> str:
    """Sha256 of a file's content, or of the names and contents of all files in a folder, as hex.

    The time stamp that Snakemake leaves in a folder is not of its content.
    """
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    total = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file() and file.name != TIME_STAMP):
        total.update(f"{file.relative_to(path).as_posix()}\0{digest(file)}\n".encode())
    return total.hexdigest()


@cache
def code_digest(*modules: str) -> str:
    """Sha256 over the code of modules and all that they import, as hex.

    Comments, docstrings and layout do not count, nor does what only carries values from the command line
    to a stage and results to their place: the values themselves are in the key. A package's ``__init__``
    counts only where a name is taken from it; the ``__init__`` files of this project hold nothing but the public face.

    A module of the user's own counts with the packages that it lies in, and with the versions of what it
    imports that is installed, since no stage names those. An installed module counts by its version.
    """
    parts: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module in parts:
            continue
        file = sources.file_of(module)
        if file is None:
            parts[module] = sources.version(module)
            continue
        parts[module], imported = _read_code(module, file)
        if sources.is_ours(module):
            waiting.extend(name for name in imported if name not in _PLUMBING and sources.file_of(name))
        else:
            waiting.extend([*imported, *filter(None, [module.rpartition(".")[0]])])
    return hashlib.sha256(json.dumps(sorted(parts.items())).encode()).hexdigest()


def cached(
    stage: str,
    *,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Path | None],
    outputs: Mapping[str, Path],
    code: Sequence[str],
    packages: Sequence[str],
    build: Build,
    host: str | None = None,
) -> bool:
    """Bring the outputs of a stage to their places, out of the store if they were ever built before.

    Args:
        stage: name of the stage.
        settings: what it was told, as JSON types.
        inputs: files and folders it reads; their content counts, their names and dates do not; None
            where one is not given.
        outputs: where its results go. Each appears by a rename, whole or not at all.
        code: modules whose code shapes the result; what they import is found.
        packages: distributions whose versions shape the result.
        build: called on a miss with a path to write for each output, and a scratch folder that
            survives a kill and is given again to the next try.
        host: fingerprint of this machine, for results that hold on it alone.

    Returns:
        True if the outputs came out of the store, False if they were built now.

    Raises:
        StageError: the disk is full or the store cannot be written; what stood there before still does.
    """
    key = _key(stage, settings, inputs, code, packages, host)
    try:
        with _lock(key):
            entry = root() / "objects" / key
            hit = _is_whole(entry, stage)
            if not hit:
                _build_entry(entry, key, stage, outputs, build)
            for name, place in outputs.items():
                _publish(next((entry / name).iterdir()), place)
    except Exception as error:
        reason = _cannot_write(error)
        if reason is None:
            raise
        raise StageError(
            f"{stage}: {reason}. Nothing was lost: what stood there before still does. Make room, or set "
            f"REPNETS_STORE (now {root()}) to a folder that can be written, and run again."
        ) from error
    print(f"{stage}: {'from the store' if hit else 'built'} ({key[:12]})", flush=True)
    return hit


def bring_dates_up(paths: Sequence[Path]) -> None:
    """Give files that were replaced by older ones (`cp -p`, rsync) the time of the replacement.

    Snakemake compares contents only where an input is newer than its output, and a copy can carry a
    date of the past. The time of the inode's last change cannot be set, so it tells; the order of those
    times is kept, a millisecond apart.
    """
    status = {path: path.stat() for path in paths}
    behind = [path for path, one in status.items() if one.st_ctime_ns > one.st_mtime_ns + 1_000_000_000]
    now = time.time_ns()
    for place, path in enumerate(sorted(behind, key=lambda path: status[path].st_ctime_ns)):
        os.utime(path, ns=(now, now + place * 1_000_000))


def _key(
    stage: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Path | None],
    code: Sequence[str],
    packages: Sequence[str],
    host: str | None,
) -> str:
    parts = {
        "stage": stage,
        "code": code_digest(*code),
        "settings": settings,
        "inputs": {name: path and digest(path) for name, path in inputs.items()},
        "packages": versions(*packages),
        "python": list(sys.version_info[:2]),
        "host": host,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


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
        yield


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


def _build_entry(entry: Path, key: str, stage: str, outputs: Mapping[str, Path], build: Build) -> None:
    work = root() / "work" / key
    fresh, scratch = work / "entry", work / "scratch"
    shutil.rmtree(fresh, ignore_errors=True)
    scratch.mkdir(parents=True, exist_ok=True)
    places = {name: fresh / name / path.name for name, path in outputs.items()}
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
    """Why the disk refused, if that is what happened; libraries hide a full disk behind errors of their own."""
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
    fresh = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}")
    try:
        if source.is_dir():
            shutil.copytree(source, fresh, copy_function=shutil.copy)
            if place.is_dir():
                old = place.with_name(f"{fresh.name}.old")
                os.replace(place, old)
                os.replace(fresh, place)
                shutil.rmtree(old)
                return
        else:
            shutil.copy(source, fresh)
        os.replace(fresh, place)
    finally:
        if fresh.is_dir():
            shutil.rmtree(fresh)
        else:
            fresh.unlink(missing_ok=True)


@cache
def _read_code(module: str, file: Path) -> tuple[str, tuple[str, ...]]:
    """Digest of a module's code, and the modules that it imports."""
    try:
        tree = ast.parse(file.read_text())
    except (SyntaxError, ValueError):  # compiled, or broken: then importing it says so
        return digest(file), ()
    imported = tuple(_imports(tree, module if file.stem == "__init__" else module.rpartition(".")[0]))
    return hashlib.sha256(ast.dump(_without_docstrings(tree)).encode()).hexdigest(), imported


def _imports(tree: ast.AST, package: str) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            modules = [f"{base}.{name.name}" for name in node.names]
            found += [module if sources.file_of(module) else base for module in modules]
    return found


def _absolute(node: ast.ImportFrom, package: str) -> str:
    """The module that names are imported from, `from . import x` resolved."""
    above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    return ".".join([*above, *filter(None, [node.module])])


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return tree
