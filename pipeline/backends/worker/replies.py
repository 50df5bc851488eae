"""What a worker process on a device may answer: each kind of reply by its types and ranges.

A device may be anything, so its figures are not believed until they are possible ones.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

MOST_BYTES = 16_000_000
"""Of one reply; that of a network of a hundred layers has some 10 kB."""

_Ms = Annotated[float, Field(ge=1e-6, lt=1e9)]
_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Text = Annotated[str, Field(max_length=2000)]
_Name = Annotated[str, Field(max_length=300)]
_EXACT = ConfigDict(strict=True, extra="forbid")


@dataclass(frozen=True)
class _Start:
    __pydantic_config__ = _EXACT
    imported: list[_Text]
    load_ms: _Ms
    first_inference_ms: _Ms
    peak_memory_bytes: _Count | None


@dataclass(frozen=True)
class _Block:
    __pydantic_config__ = _EXACT
    ms: list[_Ms]


@dataclass(frozen=True)
class _Layer:
    __pydantic_config__ = _EXACT
    name: _Text
    kind: _Text
    ms: Annotated[float, Field(ge=0, lt=1e9)]


@dataclass(frozen=True)
class _Profile:
    __pydantic_config__ = _EXACT
    layers: list[_Layer] | None


@dataclass(frozen=True)
class _Trace:
    __pydantic_config__ = _EXACT
    trace: _Text


@dataclass(frozen=True)
class _Usage:
    __pydantic_config__ = _EXACT
    cpu_seconds: Annotated[float, Field(ge=0, lt=1e12)]


@dataclass(frozen=True)
class _Nothing:
    __pydantic_config__ = _EXACT


@dataclass(frozen=True)
class _Doing:
    __pydantic_config__ = _EXACT
    doing: _Name
    file: _Name


@dataclass(frozen=True)
class _Error:
    __pydantic_config__ = _EXACT
    error: _Name
    message: str


_KINDS = {"prepare": _Nothing, "start": _Start, "block": _Block, "profile": _Profile, "trace": _Trace, "usage": _Usage}


def require(reply: Any, line: str, request: Mapping[str, Any]) -> None:
    """Hold a reply of a device against what its request may be answered with.

    Args:
        reply, line: as `parse` gives it, and its JSON.
        request: ``do`` and the action's own arguments.

    Raises:
        ValueError: it is no reply to this request, or has a figure that cannot be.
    """
    if not isinstance(reply, dict):
        raise ValueError(f"a {type(reply).__name__} and no object")
    kind = _Doing if "doing" in reply else _Error if "error" in reply else _KINDS[request["do"]]
    try:
        _adapter(kind).validate_json(line)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, problem["loc"]))[:80]
        raise ValueError(f"{where}: {problem['msg'][:1].lower()}{problem['msg'][1:]}") from None
    if kind is _Block and len(reply["ms"]) != request["runs"]:
        raise ValueError(f"{len(reply['ms'])} times of {request['runs']} runs")


def parse(line: str) -> Any:
    """JSON of one line. ValueError where it is none, or too long."""
    if len(line) >= MOST_BYTES:
        raise ValueError(f"a line of more than {MOST_BYTES:,} characters")
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError(f"`{line[:40].strip()}`, which is no JSON") from None


@cache
def _adapter(kind: type) -> TypeAdapter:
    return TypeAdapter(kind)
