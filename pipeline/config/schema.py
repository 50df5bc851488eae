"""Read settings files strictly: an error names the key, its line and the nearest valid name."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import InputError, nearest


class Strict(BaseModel):
    """Settings: frozen, and without room for a key that nobody reads."""

    model_config = ConfigDict(extra="forbid", frozen=True)


_M = TypeVar("_M", bound=Strict)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def is_name(text: object) -> bool:
    """Whether a text can name a model or a target: it is a folder, a wildcard of Snakemake and a word of the shell.

    Such a name has at most 64 ASCII letters, digits, `_`, `-` and `.`, and begins with a letter or a digit.
    """
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; InputError with the line where it cannot be parsed."""
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; run from the project's folder, or name the file.") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold `key: value` lines, but it holds a {type(values).__name__}.")
    return values


def validate(model: type[_M], values: Any, source: Path, path: tuple[str, ...]) -> _M:
    """Settings of a model's kind, read from a part of a file.

    Args:
        model: the kind.
        values: the part, as YAML types.
        source: the file.
        path: keys from the file's top to the part.

    Raises:
        InputError: an unknown key, a value of the wrong kind or out of range; names the key and its line.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
    key = (*path, *(str(part) for part in problem["loc"]))
    if problem["type"] == "extra_forbidden":
        owner = _model_at(model, problem["loc"][:-1])
        raise unknown_key(source, key, tuple(owner.model_fields))
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "literal_error":
        message = f"there is no `{problem['input']}`{nearest(problem['input'], _choices(model, problem['loc']))}"
    elif problem["type"] != "value_error" and problem["type"] != "missing":
        message = f"{message}, got {problem['input']!r}"
    raise InputError(f"{where(source, key)}: `{'.'.join(key)}`: {message}")


def unknown_key(source: Path, key: tuple[str, ...], known: Sequence[str]) -> InputError:
    """The error for a key that nobody reads."""
    return InputError(f"{where(source, key)}: unknown key `{'.'.join(key)}`{nearest(key[-1], known)}")


def where(source: Path, key: tuple[str, ...]) -> str:
    """`file, line N` of a key, or the command line where the file does not hold it."""
    name = os.path.relpath(source)
    try:
        node = yaml.compose(source.read_text())
    except (OSError, yaml.YAMLError):
        return name
    line = None
    for part in key:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = [(at, below) for at, below in pairs if at.value == part]
        if not found:
            return f"{name} or --config"
        line, node = found[0][0].start_mark.line + 1, found[0][1]
    return f"{name}, line {line}" if line else name


def _model_at(model: type[BaseModel], path: Sequence[str | int]) -> type[BaseModel]:
    for part in path:
        found = model.model_fields[str(part)].annotation
        kinds = [kind for kind in get_args(found) if isinstance(kind, type) and issubclass(kind, BaseModel)]
        model = kinds[0] if kinds else found  # of `Model | None`, the model
    return model


def _choices(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """The words that a setting can be, or each item of one."""
    keys = [part for part in path if isinstance(part, str)]
    waiting, found = [_model_at(model, keys[:-1]).model_fields[keys[-1]].annotation], []
    while waiting:
        kind = waiting.pop(0)
        found += [kind] if isinstance(kind, str) else []
        waiting += get_args(kind)
    return found
