"""Core ML packages as they lie on disk, read without loading them into Core ML."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.backends.noise import quiet
from pipeline.errors import InputError


def census(file: Path) -> dict[str, int]:
    """Operations of a package by type, without constants; ``convolution``, ``batch_norm``, ``join``, ``total``.

    coremltools folds a batch norm that follows a convolution; any other stays. ``join`` counts additions of two
    values that depend on the input: a branch that was not folded ends in one.

    Raises:
        InputError: the file is not an ML program.
    """
    program = read(file).mlProgram
    found = [
        operation
        for function in program.functions.values()
        for block in function.block_specializations.values()
        for operation in _operations(block)
    ]
    inputs = [one.name for function in program.functions.values() for one in function.inputs]
    operations = Counter(
        operation.type
        for operation in found
        if operation.type != "const" and not operation.type.startswith("constexpr_")
    )
    return {
        "convolution": operations["conv"] + operations["conv_transpose"],
        "batch_norm": operations["batch_norm"],
        "join": _joins(found, inputs),
        "total": operations.total(),
        **dict(sorted(operations.items())),
    }


def read(package: Path) -> Any:
    """The specification in a package, a protobuf ``Model``, without loading it into Core ML."""
    again = "Copy the whole folder again or run the export again."
    with quiet():
        from coremltools.proto import Model_pb2
        from google.protobuf.message import DecodeError
    try:
        manifest = json.loads((package / "Manifest.json").read_text())
        root = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
        specification = Model_pb2.Model.FromString((package / "Data" / root).read_bytes())
    except OSError as error:
        raise InputError(
            f"{package} is not a Core ML package: {Path(error.filename).name}: {error.strerror}. {again}"
        ) from None
    except (ValueError, KeyError, TypeError, DecodeError) as error:
        raise InputError(f"{package} is damaged: {' '.join(str(error).split())[:200]}. {again}") from None
    if not specification.mlProgram.functions:
        raise InputError(f"{package} holds no ML program. {again}")
    return specification


def _operations(block: Any) -> Iterator[Any]:
    for operation in block.operations:
        yield operation
        for nested in operation.blocks:
            yield from _operations(nested)


def _joins(operations: list[Any], inputs: list[str]) -> int:
    """How many additions have two operands that depend on the input; operations are in order of execution."""
    computed, joins = set(inputs), 0
    for operation in operations:
        operands = [one.name for bound in operation.inputs.values() for one in bound.arguments]
        depending = [name for name in operands if name in computed]
        joins += operation.type == "add" and len(depending) > 1
        if depending:
            computed.update(output.name for output in operation.outputs)
    return joins
