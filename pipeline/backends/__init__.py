"""Runtime families, a folder each: what each writes, counts and runs. `base` holds the contract that they keep.

`onnx` and `pytorch` are no targets; they serve as references.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, nearest


def names() -> list[str]:
    """Of all backends: the folders here that hold a `backend.py`."""
    return sorted(file.parent.name for file in Path(__file__).parent.glob("*/backend.py"))


def module_name(name: str) -> str:
    """Dotted name of a backend's module: of a name in `names`; the dotted name of a module elsewhere is its own."""
    return name if "." in name else f"{__name__}.{name}.backend"


def load(name: str) -> Any:  # a base.Backend; its type is not imported, since this module is sent to devices
    """The `base.Backend` of a name in `names`, or of the dotted name of a module elsewhere."""
    return import_module(module_name(name)).BACKEND


def load_runtime(name: str) -> Any:  # a runtime.Runtime; this module imports nothing, for the same reason
    """The `runtime.Runtime` of a backend, by its name or by the dotted name of a module elsewhere."""
    return import_module(module_name(name)).RUNTIME


@cache
def suffixes() -> Mapping[str, str]:
    """The backend that reads a file, by the file's suffix."""
    return {suffix: name for name in names() for suffix in load(name).suffixes}


def rules() -> dict[str, Any]:
    """What target.yaml may say (`config.backend_rules.BackendRules`), by the name of each backend that has targets."""
    return {name: found for name in names() if (found := load(name).rules)}


def stand_in(precision: str) -> Any:
    """The `base.Backend` that is the reference for targets of a precision whose runtime is not on this machine."""
    return next(one for one in map(load, names()) if precision in one.stands_in_for)


def by_suffix(file: Path) -> str:
    """Name of the backend that reads an exported file. InputError where there is none, with those that are known."""
    if file.suffix not in suffixes():
        what = f"the suffix `{file.suffix}`" if file.suffix else "no suffix"
        raise InputError(f"{file} has {what}, so it is unclear what runs it{nearest(file.suffix, tuple(suffixes()))}")
    return suffixes()[file.suffix]


def file_names(name: str, forms: Sequence[str]) -> list[str]:
    """Names of all the files that a backend writes for these forms of a network, manifest.json left out."""
    return load(name).file_names(forms)


def runtime_packages() -> list[str]:
    """Distributions that run files, of all backends."""
    return sorted({package for name in names() for package in load(name).run_by})
