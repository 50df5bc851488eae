"""Constants and types of a specification, as tensors and as plain Python.

The evaluator carries half precision in float32, which holds every half exactly, and unsigned integers of two and four
bytes, which torch hardly computes with, in the next wider signed type.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.backends.coreml import library
from pipeline.backends.coreml.weights import Kind, unpack
from pipeline.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch

KINDS = {
    kind.name: kind
    for kind in (
        Kind("bool", 8, "bool"),
        Kind("float16", 16, "<f2", 1),
        Kind("float32", 32, "<f4", 2),
        Kind("float64", 64, "<f8"),
        Kind("int4", 4, "int8", 8),
        Kind("int8", 8, "int8", 4),
        Kind("int16", 16, "<i2", 6),
        Kind("int32", 32, "<i4", 14),
        Kind("int64", 64, "<i8"),
        Kind("uint1", 1, "uint8", 9),
        Kind("uint2", 2, "uint8", 10),
        Kind("uint3", 3, "uint8", 12),
        Kind("uint4", 4, "uint8", 11),
        Kind("uint6", 6, "uint8", 13),
        Kind("uint8", 8, "uint8", 3),
        Kind("uint16", 16, "<u2", 7),
        Kind("uint32", 32, "<u4", 15),
    )
}
_CARRIED = {"float16": "float32", "int4": "int8", "uint16": "int32", "uint32": "int64"} | {
    name: "uint8" for name in ("uint1", "uint2", "uint3", "uint4", "uint6")
}


@dataclass(frozen=True)
class Declared:
    """What a specification says of a value.

    Attributes:
        kind: its data type, as in `KINDS`, or ``string``; None for a list or a dictionary.
        shape: None stands for a size that is not known before the run; the whole is None where even the
            number of dimensions is not known, and for a list or a dictionary.
    """

    kind: str | None
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        return f"{self.kind} {'of any shape' if self.shape is None else list(self.shape)}"


def carried(kind: str) -> "torch.dtype":
    """The type of the tensors that carry a data type of the specification here."""
    import torch

    return getattr(torch, _CARRIED.get(kind, kind))


def declared(value_type: Any) -> Declared:
    """Read a ``ValueType``.

    Raises:
        InputError: a data type that ML programs for CNNs do not have.
    """
    if value_type.WhichOneof("type") != "tensorType":
        return Declared(None, None)
    tensor = value_type.tensorType
    shape = tuple(
        int(dimension.constant.size) if dimension.WhichOneof("dimension") == "constant" else None
        for dimension in tensor.dimensions
    )
    any_rank = tensor.rank < 0 or any(dimension.unknown.variadic for dimension in tensor.dimensions)
    return Declared(_kind_name(tensor), None if any_rank else shape)


def decode(value: Any, read: Callable[[Any, Kind, int], "np.ndarray"]) -> Any:
    """A constant: a tensor (rank 0 for a single number), a string, or a list of strings or numbers.

    Args:
        value: a ``Value`` of the specification.
        read: returns the content of a weight file, flat, for a ``BlobFileValue``, its kind and the count of numbers.

    Raises:
        InputError: the value does not fill its own type.
    """
    import numpy as np
    import torch

    immediate = value.immediateValue
    if immediate.WhichOneof("value") == "list":
        return [_plain(decode(one, read)) for one in immediate.list.values]
    what = declared(value.type)
    if what.kind == "string":
        return immediate.tensor.strings.values[0] if not what.shape else list(immediate.tensor.strings.values)
    if what.kind is None or what.shape is None or None in what.shape:
        raise InputError(f"it is a constant, but its type is not: {what}.")
    kind, count = KINDS[what.kind], int(np.prod(what.shape, dtype=np.int64))
    if value.WhichOneof("value") == "blobFileValue":
        numbers = read(value.blobFileValue, kind, count)
    else:
        numbers = _immediate(immediate.tensor, kind, count)
    if numbers.size != count:
        raise InputError(f"it holds {numbers.size} numbers, but its type is {what}.")
    carrier = str(carried(what.kind)).removeprefix("torch.")
    return torch.from_numpy(numbers.astype(carrier, copy=not numbers.flags.writeable).reshape(what.shape))


def _plain(value: Any) -> Any:
    return value if isinstance(value, str) else value.tolist()


def _kind_name(tensor: Any) -> str:
    number = tensor.dataType
    known = {code: name.lower() for name, code in library.load_messages().MIL_pb2.DataType.items()}
    name = known.get(number, str(number))
    if name != "string" and name not in KINDS:
        raise InputError(f"its data type, {name}, is not one that the evaluator computes with.")
    return name


def _immediate(tensor: Any, kind: Kind, count: int) -> "np.ndarray":
    import numpy as np

    field = tensor.WhichOneof("value")
    if field is None:
        return np.empty(0, kind.numpy)
    values = getattr(tensor, field).values
    if field != "bytes":
        return np.array(values, dtype=kind.numpy)
    if len(values) != -(-count * kind.bits // 8):
        raise InputError(f"it holds {len(values)} bytes, but {count} numbers of {kind.name} are expected.")
    return unpack(np.frombuffer(values, np.uint8), kind, count)
