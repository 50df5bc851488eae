"""What an exported file takes and gives, read from the file itself and not run: shapes, by the file's suffix."""

from dataclasses import dataclass
from pathlib import Path

from pipeline import backends
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
        names, dtypes: of the input and the output, types as numpy calls them; None for what the file does not declare.
    """

    input_shape: Shape
    output_shape: Shape
    example: Shape
    takes_pixels: bool = False
    gives_probabilities: bool = False
    names: tuple[str | None, str | None] = (None, None)
    dtypes: tuple[str | None, str | None] = (None, None)


def read(file: Path) -> Signature | None:
    """What a file declares; None for an engine, which only its own runtime on a GPU can open.

    Raises:
        InputError: the file is missing, damaged or of another kind, or does not take one image batch.
    """
    found = backends.load(backends.by_suffix(file)).signature(file)
    if found and len(found.input_shape) != 4:
        raise InputError(f"{file} takes {found.input_shape}, and not a batch of images (N, C, H, W).")
    return found
