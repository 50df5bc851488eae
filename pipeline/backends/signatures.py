"""What an exported file takes and gives, read from the file itself and not run: shapes, by the file's suffix."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline.errors import InputError

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Signature:
    """The one input and the one output of a file.

    Attributes:
        input_shape: (N, C, H, W); None where the file takes any size.
        output_shape: (N, classes); None where it is not declared.
        example: sizes that the file is known to take, None where that is unknown.
        takes_pixels: an image of whole numbers from 0 to 255 goes in, and its session rounds to such.
        gives_probabilities: its session gives their logarithms in the place of logits.
    """

    input_shape: Shape
    output_shape: Shape
    example: Shape
    takes_pixels: bool = False
    gives_probabilities: bool = False


def read(file: Path) -> Signature | None:
    """What a file declares; None for an engine, which only its own runtime on a GPU can open.

    Raises:
        InputError: the file is missing, damaged or of another kind, or does not take one image batch.
    """
    found = _READERS[file.suffix](file)
    if found and len(found.input_shape) != 4:
        raise InputError(f"{file} takes {found.input_shape}, and not a batch of images (N, C, H, W).")
    return found


def _pt2(file: Path) -> Signature:
    from pipeline.backends.pytorch import backend as pytorch

    program, _ = pytorch.read(file)
    shape = pytorch.input_shape(program)
    example = program.example_inputs[0][0].shape if program.example_inputs else shape
    return Signature(shape, pytorch.output_shape(program), tuple(example))


def _pte(file: Path) -> Signature:
    from pipeline.backends.executorch import pte

    taken, given = pte.shapes(file)
    return Signature(taken, given, taken)


def _onnx(file: Path) -> Signature:
    from pipeline.backends.onnx import backend as onnx

    graph = onnx.check(file).graph
    weights = {one.name for one in graph.initializer}
    taken = _onnx_shape(next(one for one in graph.input if one.name not in weights))
    return Signature(taken, _onnx_shape(graph.output[0]), taken)


def _onnx_shape(value: Any) -> Shape:
    sizes = value.type.tensor_type.shape.dim
    return tuple(size.dim_value if size.HasField("dim_value") else None for size in sizes)


def _mlpackage(file: Path) -> Signature:
    from pipeline.backends.coreml import packages

    description = packages.read(file).description
    taken = description.input[0].type
    takes_pixels = taken.WhichOneof("Type") == "imageType"
    of_image = (1, 3, taken.imageType.height, taken.imageType.width)
    shape = of_image if takes_pixels else tuple(taken.multiArrayType.shape)
    given = next((one.type for one in description.output if one.type.WhichOneof("Type") == "multiArrayType"), None)
    output = tuple(given.multiArrayType.shape) if given else ()
    return Signature(shape, output or (shape[0], None), shape, takes_pixels, bool(description.predictedFeatureName))


def _engine(file: Path) -> None:
    from pipeline.backends.tensorrt import backend as tensorrt

    tensorrt.engine_maker(file)


_READERS: Mapping[str, Callable[[Path], Signature | None]] = MappingProxyType(
    {".pt2": _pt2, ".pte": _pte, ".onnx": _onnx, ".mlpackage": _mlpackage, ".engine": _engine}
)
