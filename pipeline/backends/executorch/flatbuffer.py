"""Fields of a FlatBuffer, read by their slot in the schema, without generated code or its package.

A table is named by its position in the bytes. A slot that the writer left out reads as 0, as an empty text, or as no
tables at all. Damaged bytes raise struct.error, IndexError or UnicodeDecodeError.
"""

import struct
from collections.abc import Iterator


def root(data: bytes, start: int = 0) -> int:
    """The table that the others hang on. A buffer that begins with its own size starts at 4."""
    return _follow(data, start)


def scalar(data: bytes, table: int, slot: int, kind: str) -> int:
    """A number; `kind` as `struct` writes it, e.g. ``<I``."""
    at = _field(data, table, slot)
    return struct.unpack_from(kind, data, at)[0] if at else 0


def child(data: bytes, table: int, slot: int) -> int | None:
    """A table within this one, None where it has none."""
    at = _field(data, table, slot)
    return _follow(data, at) if at else None


def tables(data: bytes, table: int, slot: int) -> Iterator[int]:
    """The tables of a list."""
    vector = child(data, table, slot)
    for index in range(struct.unpack_from("<I", data, vector)[0] if vector else 0):
        yield _follow(data, vector + 4 + 4 * index)


def text(data: bytes, table: int, slot: int) -> str:
    """A text."""
    start = child(data, table, slot)
    if not start:
        return ""
    return data[start + 4 : start + 4 + struct.unpack_from("<I", data, start)[0]].decode()


def numbers(data: bytes, table: int, slot: int) -> tuple[int, ...]:
    """A list of int32."""
    vector = child(data, table, slot)
    count = struct.unpack_from("<I", data, vector)[0] if vector else 0
    return struct.unpack_from(f"<{count}i", data, vector + 4) if count else ()


def _follow(data: bytes, at: int) -> int:
    return at + struct.unpack_from("<I", data, at)[0]


def _field(data: bytes, table: int, slot: int) -> int:
    """Position of a table's field, 0 where it is absent."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    entry = 4 + 2 * slot
    if entry >= struct.unpack_from("<H", data, vtable)[0]:
        return 0
    offset = struct.unpack_from("<H", data, vtable + entry)[0]
    return table + offset if offset else 0
