"""The JSON documents of the stages: each kind is a dataclass, and is read and written only here.

The fields are the keys, in the order of the file; a field with the default None is left out if it is None. `schema`
comes first. It is the version of the kind, and increases when a key is renamed, removed or changes its meaning; a
document without it is of version 1.

Documents that others rely on, those with a field `subjects` (`artifacts.evidence`), end with ``digest``: sha256 over
all their other keys. It shows that one was edited or cut short. Whoever knows how it is made can make it anew.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from pipeline import regular_file
from pipeline.artifacts.manifest import write_json
from pipeline.errors import InputError, quoted

_MOST_BYTES = 16_000_000


class Document(Protocol):
    """A kind of document.

    Attributes:
        TITLE: its name in messages.
        STAGE: the stage that writes it.
        SCHEMA: version of its keys.
    """

    TITLE: ClassVar[str]
    STAGE: ClassVar[str]
    SCHEMA: ClassVar[int]


_D = TypeVar("_D", bound=Document)
_E = TypeVar("_E", bound=Document)
_T = TypeVar("_T")


def read(kind: type[_D], path: Path) -> _D:
    """Read a document.

    Args:
        kind: its dataclass.
        path: of the file.

    Raises:
        InputError: it is missing, is no JSON, lacks a key, holds a value of another type, is of another schema, or was
            edited.
    """
    remedy = f"Delete it and run again: the stage `{kind.STAGE}` writes it."
    try:
        content = regular_file.content_of(path, _MOST_BYTES)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist. Build it first: snakemake {path}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. {remedy}") from None
    except ValueError as error:
        raise InputError(f"{path} is no {kind.TITLE}: {error}. {remedy}") from None
    return parse(kind, content, str(path), remedy)


def parse(kind: type[_D], content: bytes, name: str, remedy: str) -> _D:
    """Read a document that is a part of another file.

    Args:
        kind: its dataclass.
        content: UTF-8.
        name: of the document, for messages.
        remedy: what to do where it cannot be read, a sentence or two.

    Raises:
        InputError: as `read`.
    """
    from pydantic import ValidationError

    try:
        document = json.loads(content)
        if not isinstance(document, dict):
            raise ValueError(f"it holds a {type(document).__name__}")
        schema = document.get("schema", 1)
        if type(schema) is int and schema > kind.SCHEMA:
            raise InputError(
                f"{name} is a {kind.TITLE} of schema {quoted(schema)}, and this version of repnets reads {kind.SCHEMA}:"
                f" a newer one wrote it. Update repnets; or delete the file and run the stage `{kind.STAGE}` again."
            )
        if type(schema) is not int or schema != kind.SCHEMA:
            raise ValueError(f"schema: {quoted(repr(schema))} is not known")
        parsed = _adapter(kind).validate_json(content, strict=True)
        if _is_sealed(kind) and document.pop("digest", None) != _digest(document):
            raise InputError(f"{name} does not have the digest that it was written with, so it was edited. {remedy}")
        return parsed
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
        why = f"{'.'.join(map(str, problem['loc']))}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"
    except (ValueError, RecursionError) as error:
        why = str(error)
    raise InputError(f"{name} is no {kind.TITLE} of this pipeline, or was cut short ({quoted(why)}). {remedy}")


def read_either(kind: type[_D], other: type[_E], path: Path) -> _D | _E:
    """Read a document that is of one of two kinds: of the first where it has all keys of that; see `read`."""
    with suppress(OSError, ValueError, RecursionError):  # which `read` tells of
        content = json.loads(regular_file.content_of(path, _MOST_BYTES))
        if isinstance(content, dict) and {one.name for one in fields(kind)} <= content.keys():
            return read(kind, path)
    return read(other, path)


def of(kind: type[_T], values: Mapping[str, Any]) -> _T:
    """A document of a kind, or a part of one, from its JSON types, with tuples or lists.

    Raises:
        TypeError: the kind has no field for some key, so that it would be lost.
    """
    document = _adapter(kind).validate_python(values)
    if lost := _lost(values, plain(document)):
        raise TypeError(f"{kind.__name__} has no field for {', '.join(lost)}")
    return document


def write(path: Path, document: Document) -> None:
    """Write a document."""
    content = plain(document)
    write_json(path, content | {"digest": _digest(content)} if _is_sealed(type(document)) else content)


def _is_sealed(kind: type) -> bool:
    return any(field.name == "subjects" for field in fields(kind))


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def plain(value: Any) -> Any:
    """A document, or a part of one, as JSON types."""
    if is_dataclass(value):
        schema = {"schema": value.SCHEMA} if hasattr(value, "SCHEMA") else {}
        return schema | {
            field.name: plain(part)
            for field in fields(value)
            if (part := getattr(value, field.name)) is not None or field.default is not None
        }
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def _lost(given: Any, kept: Any, place: str = "") -> list[str]:
    """Places of the values that are given and not kept; None counts as kept."""
    if isinstance(given, Mapping) and isinstance(kept, Mapping):
        missing = [f"{place}{key}" for key, value in given.items() if key not in kept and value is not None]
        return missing + [
            one for key, value in given.items() if key in kept for one in _lost(value, kept[key], f"{place}{key}.")
        ]
    if isinstance(given, list | tuple) and isinstance(kept, list | tuple):
        parts = zip(given, kept, strict=True)
        return [one for at, (part, other) in enumerate(parts) for one in _lost(part, other, f"{place}{at}.")]
    return []


@cache
def _adapter(kind: type) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
