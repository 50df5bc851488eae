"""weight.bin of a Core ML package: the large constants, which are not in the specification.

The file opens with 64 bytes (a count and the format's version), then each record has 64 bytes that say what it holds,
and its data where those say. A specification's offset points at the 64 bytes, not at the data. Everything is
little-endian; values of less than a byte are packed from the lowest bit up.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InputError

if TYPE_CHECKING:
    import numpy as np

_VERSION = 2
_SENTINEL = 0xDEADBEEF
_HEADER, _RECORD = struct.Struct("<II56x"), struct.Struct("<IIQQQ32x")
_CHUNK = 1 << 20  # values of less than a byte that are unpacked at once: one byte a bit


@dataclass(frozen=True)
class Kind:
    """How numbers of one data type are stored.

    Attributes:
        name: as in the specification, in lower case: ``float16``.
        bits: of one number.
        numpy: type of an array that holds them, one number each.
        code: what a record of weight.bin calls them, None where it has no word for them.
    """

    name: str
    bits: int
    numpy: str
    code: int | None = None


def read(file: Path, offset: int, kind: Kind, count: int) -> "np.ndarray":
    """The numbers of one record, flat, as they are stored.

    Args:
        file: a weight.bin.
        offset: of the record, bytes.
        kind, count: what the specification says that the record holds.

    Raises:
        InputError: there is no such file, it is shorter than it says, or the record holds something else.
    """
    import numpy as np

    try:
        with file.open("rb") as opened:
            size = opened.seek(0, 2)
            version = _HEADER.unpack(_bytes(file, opened, size, 0, _HEADER.size))[1]
            if version != _VERSION:
                raise _damaged(file, f"its format is {version}, not {_VERSION}")
            record = _bytes(file, opened, size, offset, _RECORD.size)
            sentinel, code, length, start, padding_bits = _RECORD.unpack(record)
            where = f"the record at byte {offset}"
            if sentinel != _SENTINEL:
                raise _damaged(file, f"{where} opens with {sentinel:#x}, not {_SENTINEL:#x}")
            if code != kind.code:
                raise _damaged(file, f"{where} is of type {code}, but the specification takes it for {kind.name}")
            if length != -(-count * kind.bits // 8):
                raise _damaged(file, f"{where} has {length} bytes, but {count} numbers of {kind.name} are expected")
            if kind.bits < 8 and padding_bits != 8 * length - kind.bits * count:
                raise _damaged(file, f"{where} leaves {padding_bits} bits unused, which does not fit its length")
            data = _bytes(file, opened, size, start, length)
    except OSError as error:
        raise InputError(
            f"{file} cannot be read: {error.strerror}. The package's weights are in it: {_AGAIN}"
        ) from None
    return unpack(np.frombuffer(data, np.uint8), kind, count)


def unpack(data: "np.ndarray", kind: Kind, count: int) -> "np.ndarray":
    """Numbers from their bytes; those of less than a byte get one each, with their sign.

    Args:
        data: uint8, no longer than needed.
        kind, count: what the bytes hold.
    """
    import numpy as np

    if kind.bits >= 8:
        return data.view(kind.numpy)
    values = np.empty(count, np.uint8)
    weights = (1 << np.arange(kind.bits)).astype(np.uint8)
    for start in range(0, count, _CHUNK):
        part = values[start : start + _CHUNK]
        first = start * kind.bits // 8
        bits = np.unpackbits(data[first : first + _CHUNK * kind.bits // 8], bitorder="little")
        part[:] = bits[: part.size * kind.bits].reshape(-1, kind.bits) @ weights
    if kind.numpy == "int8":
        values -= (values >> (kind.bits - 1)) << kind.bits  # the highest bit is the sign
    return values.view(kind.numpy)


_AGAIN = "copy the whole folder again or run the export again."


def _bytes(file: Path, opened: object, size: int, start: int, length: int) -> bytearray:
    if start + length > size:
        raise _damaged(file, f"it ends at byte {size}, but bytes {start} to {start + length} are needed")
    opened.seek(start)
    data = bytearray(length)
    opened.readinto(data)
    return data


def _damaged(file: Path, why: str) -> InputError:
    return InputError(f"{file} is damaged: {why}. {_AGAIN.capitalize()}")
