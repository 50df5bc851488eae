"""Find the source file of a module without importing it: of this project, of the user, or installed.

A module is looked up as `python -m` finds it: in the folder of the run first, then on Python's path.
"""

import os
import sys
import sysconfig
from functools import cache
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
"""The folder that holds `pipeline` and `repnets`."""
_PACKAGES = ("pipeline", "repnets")
_INSTALLED = {"site-packages", "dist-packages"}


def find(module: str) -> ModuleSpec | None:
    """What Python would import under a name, or None. Neither it nor the packages around it are imported."""
    top, *inner = module.split(".")
    spec = _top(top, os.getcwd())
    for part in inner:
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations))
    return spec


def is_ours(module: str) -> bool:
    """Whether a module is of this project, by its name."""
    return module.partition(".")[0] in _PACKAGES


@cache
def file_of(module: str) -> Path | None:
    """The file of a module of this project or of the user's own; None for what is installed, or is not there."""
    if is_ours(module):
        path = PROJECT.joinpath(*module.split("."))
        return next((one for one in (path.with_suffix(".py"), path / "__init__.py") if one.exists()), None)
    top = module.partition(".")[0]
    for name in dict.fromkeys((top, module)):  # what is installed is not looked into
        spec = find(name)
        if spec is None or (spec.has_location and not is_users(spec.origin)):
            return None
    return Path(spec.origin) if spec.has_location else None


def is_users(file: str) -> bool:
    """Whether a file is the user's own: not of this project, of an installed package, or of Python itself."""
    path = Path(file)
    others = (*(PROJECT / name for name in _PACKAGES), sysconfig.get_path("stdlib"))
    return _INSTALLED.isdisjoint(path.parts) and not any(path.is_relative_to(other) for other in others)


@cache
def version(module: str) -> str:
    """Version of the distribution that a module was installed from; empty for none, as for Python's own."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:
        return ""
    try:
        return metadata.version(top)
    except (metadata.PackageNotFoundError, ValueError):
        names = sorted(set(metadata.packages_distributions().get(top, ())))
        return ", ".join(f"{name} {metadata.version(name)}" for name in names)


@cache
def _top(name: str, folder: str) -> ModuleSpec | None:
    if not name:
        return None
    if spec := PathFinder.find_spec(name, [folder, *sys.path]):
        return spec
    # who else knows modules: Python's built-in ones, and what was installed as `pip install --editable`
    return next((spec for finder in sys.meta_path if (spec := finder.find_spec(name, None))), None)
