"""Read Core ML packages from disk, without Core ML."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pipeline.artifacts.manifest import ExportSpec, as_plain
from pipeline.backends.coreml import library, weights
from pipeline.backends.signatures import Signature, Tensor
from pipeline.errors import GateError, InputError, quoted, reading, shown
from pipeline.quiet import quiet

if TYPE_CHECKING:
    import numpy as np

_AGAIN = "Copy the whole folder again or run the export again."


@dataclass(frozen=True)
class Package:
    """A package whose Manifest and specification have been read.

    Attributes:
        folder: the .mlpackage.
        specification: a protobuf ``Model``.
        root: its path under ``Data``.
        entries: what else the Manifest names, files and folders under ``Data``.
    """

    folder: Path
    specification: Any
    root: PurePosixPath
    entries: frozenset[PurePosixPath]


def census(file: Path) -> dict[str, int]:
    """Operations of a package by type, without constants; ``convolution``, ``batch_norm``, ``join``, ``int8``,
    ``total``.

    coremltools folds a batch norm that follows a convolution; any other stays. ``join`` counts additions of two
    values that depend on the input: a branch that was not folded ends in one. ``int8`` counts the
    convolutions and linear layers between dequantize and quantize, whose weights are stored as int8.

    Raises:
        InputError: the file is not an ML program.
    """
    program = read(file).mlProgram
    with reading(file, _AGAIN):
        return _census(program)


def _census(program: Any) -> dict[str, int]:
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
        "int8": _int8(found),
        "total": operations.total(),
        **dict(sorted(operations.items())),
    }


def inspect(files: Sequence[Path], facts: Mapping[str, Any], spec: ExportSpec) -> None:
    """Hold what a package says of its preprocessing against the network's: an app reads it there.

    Raises:
        GateError: a field differs.
        InputError: the file is not an ML program.
    """
    with reading(files[0], _AGAIN):
        noted = dict(json.loads(read(files[0]).description.metadata.userDefined["preprocessing"]))
    for field, must in as_plain(spec.preprocessing).items():
        if noted.get(field) != must:
            raise GateError(
                f"{files[0]}: its metadata says that `{field}` of the preprocessing is {quoted(noted.get(field))}, but "
                f"the network was trained and verified with {must}. Export it again."
            )


def read(package: Path) -> Any:
    """The specification in a package, a protobuf ``Model``, without loading it into Core ML."""
    return open_package(package).specification


def open_package(package: Path) -> Package:
    """Read the Manifest of a package and its specification.

    Raises:
        InputError: one of them is missing or damaged, or there is no ML program; the package holds links or devices; a
            path of the Manifest leads out of it.
    """
    with quiet():
        Model = library.load_messages().Model_pb2.Model
    with reading(package, _AGAIN):
        try:
            _require_regular(package)
            manifest = json.loads((package / "Manifest.json").read_bytes())
            paths = {key: _inside(item["path"]) for key, item in manifest["itemInfoEntries"].items()}
            root = paths[manifest["rootModelIdentifier"]]
            specification = Model.FromString((package / "Data" / root).read_bytes())
        except OSError as error:
            name = shown(Path(error.filename or "").name)
            raise InputError(f"{package} is not a Core ML package: {name}: {error.strerror}. {_AGAIN}") from None
    if not specification.mlProgram.functions:
        raise InputError(f"{package} holds no ML program. {_AGAIN}")
    return Package(package, specification, root, frozenset(paths.values()) - {root})


def _require_regular(package: Path) -> None:
    """A package holds folders and regular files alone, so that no path in it leads out of it."""
    for path in package.rglob("*"):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise ValueError(f"{shown(path.name)} is no regular file")


def _inside(path: str) -> PurePosixPath:
    """A path of the Manifest. ValueError where it leads out of the package's own data."""
    found = PurePosixPath(path)
    if found.is_absolute() or ".." in found.parts or "\0" in path:
        raise ValueError(f"the path {quoted(path)} in its Manifest leads out of it")
    return found


def main_block(file: Path, specification: Any) -> tuple[Any, Any]:
    """The operations that a prediction runs, and the function's inputs.

    Raises:
        InputError: the program has no such function, or no block for the version that it asks for.
    """
    functions = specification.mlProgram.functions
    name = specification.description.defaultFunctionName or "main"
    if name not in functions:
        raise InputError(f"{file} is damaged: it has no function `{name}`. {_AGAIN}")
    function = functions[name]
    if function.opset not in function.block_specializations:
        raise InputError(f"{file} is damaged: its function `{name}` has no block for {function.opset}. {_AGAIN}")
    block = function.block_specializations[function.opset]
    if not block.operations or not block.outputs:
        raise InputError(f"{file} is damaged: its function `{name}` computes nothing. {_AGAIN}")
    return block, function.inputs


def read_weights(package: Package, blob: Any, kind: weights.Kind, count: int) -> "np.ndarray":
    """The numbers that a ``BlobFileValue`` of the specification points at, flat.

    Raises:
        InputError: the Manifest does not name the file, or it does not hold what is expected.
    """
    path = PurePosixPath(blob.fileName.replace("@model_path", str(package.root.parent), 1))
    named = any(path == entry or entry in path.parents for entry in package.entries)
    if not named or ".." in path.parts:
        raise InputError(
            f"{package.folder} is damaged: its weights are said to be in {quoted(blob.fileName)}, which Manifest.json "
            f"does not name. {_AGAIN}"
        )
    return weights.read(package.folder / "Data" / path, blob.offset, kind, count)


def _operations(block: Any) -> Iterator[Any]:
    for operation in block.operations:
        yield operation
        for nested in operation.blocks:
            yield from _operations(nested)


def _int8(operations: list[Any]) -> int:
    """How many layers compute on int8: input and weights come from it, and the result, or what an activation makes of
    it, goes to it.

    coremltools crops after a transposed convolution with an output padding.
    """
    made_by = {output.name: operation for operation in operations for output in operation.outputs}
    users: dict[str, list[Any]] = {}
    for operation in operations:
        for name in _operands(operation):
            users.setdefault(name, []).append(operation)

    def is_from(kinds: tuple[str, ...], bound: Any) -> bool:
        return all(one.name in made_by and made_by[one.name].type in kinds for one in bound.arguments)

    def goes_to_int8(name: str, steps: int = 1) -> bool:
        return any(
            user.type == "quantize"
            or (user.type == "crop" and goes_to_int8(user.outputs[0].name, steps))
            or (steps and goes_to_int8(user.outputs[0].name, steps - 1))
            for user in users.get(name, ())
        )

    return sum(
        operation.type in ("conv", "conv_transpose", "linear")
        and is_from(("dequantize",), operation.inputs["x"])
        and is_from(("constexpr_affine_dequantize", "constexpr_blockwise_shift_scale"), operation.inputs["weight"])
        and goes_to_int8(operation.outputs[0].name)
        for operation in operations
    )


def _operands(operation: Any) -> list[str]:
    return [one.name for bound in operation.inputs.values() for one in bound.arguments]


def _joins(operations: list[Any], inputs: list[str]) -> int:
    """How many additions have two operands that depend on the input; operations are in order of execution."""
    computed, joins = set(inputs), 0
    for operation in operations:
        depending = [name for name in _operands(operation) if name in computed]
        joins += operation.type == "add" and len(depending) > 1
        if depending:
            computed.update(output.name for output in operation.outputs)
    return joins


def signature(file: Path) -> Signature:
    """What a package takes and gives. InputError where it cannot be read."""
    description = read(file).description
    with reading(file, _AGAIN):
        return _signature(description)


def _signature(description: Any) -> Signature:
    taken = description.input[0].type
    takes_pixels = taken.WhichOneof("Type") == "imageType"
    channels = 1 if taken.imageType.ColorSpace.Name(taken.imageType.colorSpace) == "GRAYSCALE" else 3
    of_image = (1, channels, taken.imageType.height, taken.imageType.width)
    shape = of_image if takes_pixels else tuple(taken.multiArrayType.shape)
    arrays = [one for one in description.output if one.type.WhichOneof("Type") == "multiArrayType"]
    outputs = tuple(
        Tensor(tuple(one.type.multiArrayType.shape) or (shape[0], None), one.name, _dtype(one.type)) for one in arrays
    )
    return Signature(
        Tensor(shape, description.input[0].name, "uint8" if takes_pixels else _dtype(taken)),
        outputs or (Tensor((shape[0], None)),),
        shape,
        takes_pixels,
        bool(description.predictedFeatureName),
        further=tuple(
            Tensor(tuple(one.type.multiArrayType.shape), one.name, _dtype(one.type)) for one in description.input[1:]
        ),
    )


def _dtype(feature: Any) -> str:
    """Type of an array's numbers, as numpy calls it."""
    array = feature.multiArrayType
    return array.ArrayDataType.Name(array.dataType).lower()
