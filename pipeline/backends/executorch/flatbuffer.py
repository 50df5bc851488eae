"""Fields of a FlatBuffer, read by their slot in the schema, without generated code or its package.

A table is named by its position in the bytes. A slot that the writer left out reads as 0, as an empty text, or as no
tables at all. Damaged bytes raise struct.error, IndexError or UnicodeDecodeError.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_MOST_STEPS = 1 << 20  # through lists; a network of a thousand layers takes 50,000
_LONGEST = 10_000  # characters of a text


@dataclass
class FlatBuffer:
    """The bytes of a FlatBuffer.

    In a damaged file many lists can share their tables, so that a small file holds more of them than can be counted.
    A list has 4 bytes for each of its elements: who walks through more than there are bytes walks in circles.

    Attributes:
        content: the bytes.
        steps: elements of lists that were read.
    """

    content: bytes
    steps: int = 0

    def root(self, start: int = 0) -> int:
        """The table that the others hang on. A buffer that begins with its own size starts at 4."""
        return self._follow(start)

    def scalar(self, table: int, slot: int, kind: str) -> int:
        """A number; `kind` as `struct` writes it, e.g. ``<I``."""
        at = self._field(table, slot)
        return struct.unpack_from(kind, self.content, at)[0] if at else 0

    def child(self, table: int, slot: int) -> int | None:
        """A table within this one, None where it has none."""
        at = self._field(table, slot)
        return self._follow(at) if at else None

    def tables(self, table: int, slot: int) -> Iterator[int]:
        """The tables of a list."""
        vector, count = self._list(table, slot)
        for index in range(count):
            yield self._follow(vector + 4 + 4 * index)

    def text(self, table: int, slot: int) -> str:
        """A text."""
        start = self.child(table, slot)
        if not start:
            return ""
        (length,) = struct.unpack_from("<I", self.content, start)
        if length > _LONGEST:
            raise IndexError(f"a text of {length} bytes")
        return self.content[start + 4 : start + 4 + length].decode()

    def numbers(self, table: int, slot: int) -> tuple[int, ...]:
        """A list of int32."""
        vector, count = self._list(table, slot)
        return struct.unpack_from(f"<{count}i", self.content, vector + 4) if count else ()

    def _list(self, table: int, slot: int) -> tuple[int, int]:
        """Where a list begins, and its length."""
        vector = self.child(table, slot)
        count = struct.unpack_from("<I", self.content, vector)[0] if vector else 0
        self.steps += count
        if self.steps > min(len(self.content), _MOST_STEPS):
            raise IndexError("its lists share their parts, or have more than it has bytes")
        return vector or 0, count

    def _follow(self, at: int) -> int:
        return at + struct.unpack_from("<I", self.content, at)[0]

    def _field(self, table: int, slot: int) -> int:
        """Position of a table's field, 0 where it is absent."""
        vtable = table - struct.unpack_from("<i", self.content, table)[0]
        entry = 4 + 2 * slot
        if vtable < 0:  # struct would count from the end
            raise IndexError("a table lies before its start")
        if entry >= struct.unpack_from("<H", self.content, vtable)[0]:
            return 0
        offset = struct.unpack_from("<H", self.content, vtable + entry)[0]
        return table + offset if offset else 0
