"""Digests for the store's keys and for manifests: of files and folders, and of the code that a result depends on."""

import ast
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path, PurePosixPath

from pipeline.artifacts import source_files
from pipeline.errors import InputError

TIME_STAMP = ".snakemake_timestamp"
_PLUMBING = {
    f"pipeline.{name}"
    for name in (
        "artifacts.atomic",
        "artifacts.digests",
        "artifacts.disk_errors",
        "artifacts.source_files",
        "artifacts.store",
        "artifacts.store_access",
        "config.backend_options",
        "config.project",
        "config.schema",
        "config.stages",
        "config.targets",
        "errors",
        "exit_codes",
        "lifetime",
        "models.resolve",
        "report.console",
        "stages.command",
        "stages.settings",
        "temporary",
    )
}
"""Modules that only pass values to a stage, or copy or print its results: the values themselves are in the key."""


def digest(path: Path) -> str:
    """Sha256 of a file's content, or of the names and contents of all files in a folder, as hex.

    Snakemake's time stamp in a folder is left out.
    """
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = (file for file in path.rglob("*") if file.is_file() and file.name != TIME_STAMP)
    return folder_digest({file.relative_to(path).as_posix(): digest(file) for file in files})


def folder_digest(files: Mapping[str, str]) -> str:
    """The digest of a folder by those of its files, whose names are relative to it, with slashes."""
    lines = (f"{name}\0{files[name]}\n" for name in sorted(files, key=PurePosixPath))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class Inputs:
    """The files and folders that a stage reads. Each is digested once: for the store's key, and for what is written.

    Attributes:
        paths: by name; None for an input that is not given.
    """

    paths: Mapping[str, Path | None]

    @cached_property
    def sha256(self) -> dict[str, str]:
        """The digest of each one that is given, by name."""
        return {name: digest(path) for name, path in self.paths.items() if path}

    def require_unchanged(self) -> None:
        """Read them again: InputError if the content of one is no longer what `sha256` says."""
        for name, sha256 in self.sha256.items():
            path = self.paths[name]
            if not path.exists() or digest(path) != sha256:
                raise InputError(
                    f"{path} was replaced while it was being read, so the result may be of either content. Nothing was "
                    "kept. Run again, and let nothing write to it meanwhile."
                )


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
        file = source_files.file_of(module)
        if file is None:
            parts[module] = source_files.version(module)
            continue
        parts[module], imported = _read_code(module, file)
        if source_files.is_ours(module):
            waiting.extend(name for name in imported if name not in _PLUMBING and source_files.file_of(name))
        else:
            waiting.extend([*imported, *filter(None, [module.rpartition(".")[0]])])
    return hashlib.sha256(json.dumps(sorted(parts.items())).encode()).hexdigest()


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
            found += [module if source_files.file_of(module) else base for module in modules]
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
