"""Read settings files strictly: an error names the key, its line and the nearest valid name."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.config import yaml_file
from pipeline.errors import QUOTED, InputError, nearest, quoted


class Strict(BaseModel):
    """Settings: frozen, and without room for a key that nobody reads.

    A default is validated as a given value is, so that `1` becomes 1.0 in a float field. The store's keys are made of
    JSON, where the two differ: the same settings are then the same text, read from a file or from JSON.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


_M = TypeVar("_M", bound=Strict)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def is_name(text: object) -> bool:
    """Whether a text can name a model or a target: it is a folder, a wildcard of Snakemake and a word of the shell.

    Such a name has at most 64 ASCII letters, digits, `_`, `-` and `.`, and begins with a letter or a digit.
    """
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


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
        # a key that is misspelt is also missed under its own name
        problem = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    kind, given = problem["type"], problem["input"]
    key = (*path, *(str(part) for part in problem["loc"]))
    if kind == "extra_forbidden":
        owner = _model_at(model, problem["loc"][:-1])
        raise unknown_key(source, key, tuple(owner.model_fields))
    if kind == "missing":
        raise InputError(f"{where(source, key[:-1])}: `{dotted(key)}` is missing. Add it.")
    if kind in ("model_type", "dict_type"):
        raise no_section(source, key, given)
    if kind == "literal_error":
        message = f"there is no `{quoted(given)}`{nearest(quoted(given), _choices(model, problem['loc']))}"
    elif kind == "value_error":
        message = problem["msg"].removeprefix("Value error, ")
    else:
        message = f"{problem['msg']}, got {_as_given(given)}"
    raise InputError(f"{where(source, key)}: `{dotted(key)}`: {message}")


def section(values: Mapping[str, Any], source: Path, path: tuple[str, ...]) -> Mapping[str, Any]:
    """A part of a file that holds keys of its own; empty where it is left out.

    Args:
        values: what it is a part of.
        source: the file.
        path: keys from the file's top to the part.

    Raises:
        InputError: it is no mapping.
    """
    found = values.get(path[-1])
    if found is not None and not isinstance(found, Mapping):
        raise no_section(source, path, found)
    return found or {}


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with some changed: mappings in mappings key by key, every other value as a whole."""
    both = dict(base)
    for key, value in changes.items():
        is_part = isinstance(value, Mapping) and isinstance(both.get(key), Mapping)
        both[key] = merged(both[key], value) if is_part else value
    return both


def no_section(source: Path, key: tuple[str, ...], given: Any) -> InputError:
    """The error for a value where keys are expected."""
    is_names = isinstance(given, list) and given and all(map(is_name, given))
    hint = f" Write each name as a key: `{key[-1]}: {{{given[0]}: }}`." if is_names else ""
    return InputError(
        f"{where(source, key)}: `{dotted(key)}` must hold `key: value` lines, but it is {_as_given(given)}.{hint}"
    )


def unknown_key(source: Path, key: tuple[str, ...], known: Sequence[str]) -> InputError:
    """The error for a key that nobody reads."""
    return InputError(f"{where(source, key)}: unknown key `{dotted(key)}`{nearest(key[-1], known)}")


def dotted(key: Sequence[object]) -> str:
    """Keys from a file's top, as a message names them."""
    return quoted(".".join(map(str, key)))


def where(source: Path, key: tuple[str, ...]) -> str:
    """`file, line N` of a key, or the command line where the file does not hold it."""
    name = os.path.relpath(source)
    try:
        line = yaml_file.line_of(source, key)
    except InputError:
        return name
    return f"{name}, line {line}" if line else f"{name} or --config" if key else name


def _as_given(value: object) -> str:
    """A value in a message; text in quotation marks."""
    return quoted(repr(value[:QUOTED]) if isinstance(value, str) else value)


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
