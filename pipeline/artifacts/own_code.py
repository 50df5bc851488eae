"""Code of the user's own, named as `module.path:name`: a network's factory, a task.

A module is looked up in the folder of the run first, then on Python's path.
"""

import importlib
import os
import re
import symtable
import sys
import traceback
from collections.abc import Callable
from difflib import get_close_matches
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from pipeline.artifacts import source_files
from pipeline.errors import InputError, nearest

_OWN = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_STAR = re.compile(r"^\s*from\s.*\simport\s*\*", re.MULTILINE)


def require(reference: str, key: str = "arch", example: str = "mynets.small:build") -> None:
    """Hold a reference to what is there; none of the user's code is run.

    Args:
        reference: `module.path:name`.
        key: of the configuration, where it stands.
        example: of such a reference, for the message.

    Raises:
        InputError: it is of another form; there is no such module, it is not Python, or has no such name.
    """
    if not _OWN.fullmatch(reference):
        module, _, name = example.partition(":")
        raise InputError(
            f"`{reference}` is not of the form `module.path:{'factory' if key == 'arch' else 'name'}`, such as "
            f"`{example}` for `{name}` in {module.replace('.', '/')}.py."
        )
    module, _, name = reference.partition(":")
    spec = source_files.find(module)
    if spec is None or spec.origin is None:
        file = Path(*module.split(".")).with_suffix(".py")
        near = get_close_matches(module, [path.stem for path in Path().glob("*.py")], n=1)
        raise InputError(
            f"there is no module `{module}`{f'; did you mean `{near[0]}`?' if near else ''}: it was looked for as "
            f"{file} in {Path().absolute()}, then on Python's path. Correct `{key}`, or put the file there."
        )
    if not spec.has_location or not spec.origin.endswith(".py"):
        return
    file, text = _shown(spec.origin), Path(spec.origin).read_text(errors="replace")
    try:
        symbols = symtable.symtable(text, file, "exec").get_symbols()
    except SyntaxError as error:
        raise InputError(f"{file}, line {error.lineno}, is not valid Python: {error.msg}. Mend it.") from None
    names = {one.get_name(): one for one in symbols if one.is_assigned() or one.is_imported() or one.is_namespace()}
    if name not in names and "__getattr__" not in names and not _STAR.search(text):
        made = [own for own, one in names.items() if one.is_namespace() and not own.startswith("_")]
        hint = nearest(name, made) if made else ", and no function at all."
        if inside := _modules_with(name, module, spec):
            hint = f"; did you mean `{inside[0]}:{name}`?"
        raise InputError(f"{file} has no `{name}`{hint}")


def modules(reference: str | None) -> tuple[str, ...]:
    """The module that a reference names, for `digests.code_digest`; none of another word."""
    module, own, _ = (reference or "").partition(":")
    return (module,) if own else ()


def load(reference: str) -> Any:
    """What a reference names. InputError as for `made`."""
    module, _, name = reference.partition(":")
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    return made(reference, lambda: getattr(importlib.import_module(module), name))


def made(reference: str, make: Callable[[], Any], what: str = "cannot be built") -> Any:
    """What `make` returns; what it raises, as an InputError that names the last line of the user's own code."""
    try:
        return make()
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [one for one in frames if Path(one.filename).is_file() and source_files.is_users(one.filename)]
        place = f", in {_shown(own[-1].filename)}, line {own[-1].lineno}" if own else ""
        raise InputError(f"`{reference}` {what}: {words(error)}{place}.") from error


def words(error: Exception) -> str:
    """An exception in one line, without a full stop."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}".rstrip(": .")


def _modules_with(name: str, package: str, spec: ModuleSpec) -> list[str]:
    """The modules in a package that define a function or class of some name, the least deep first."""
    defined = re.compile(rf"^(?:def|class) {name}\b", re.MULTILINE)
    found = []
    for place in map(Path, spec.submodule_search_locations or ()):
        for path in place.rglob("*.py"):
            if defined.search(path.read_text(errors="replace")):
                inner = path.relative_to(place).with_suffix("").parts
                found.append(".".join((package, *inner)).removesuffix(".__init__"))
    return sorted(found, key=lambda module: (module.count("."), module))


def _shown(file: str) -> str:
    """A path as it is written from the folder of the run."""
    path = Path(file).absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
