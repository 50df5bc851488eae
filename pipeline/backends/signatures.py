"""What an exported file takes and gives, read from the file itself and not run: shapes, by the file's suffix."""

from dataclasses import dataclass
from pathlib import Path

from pipeline import backends
from pipeline.errors import InputError

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Tensor:
    """An input or output as a file declares it.

    Attributes:
        shape: None for an axis of any size; empty where it is not declared.
        name: None where the file has none.
        dtype: as numpy calls it; None where it is not declared.
    """

    shape: Shape
    name: str | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a file.

    Attributes:
        input: of shape (N, C, H, W); of several inputs the first.
        outputs: in order; of a classifier one, (N, classes).
        example: sizes of the first input that the file is known to take, None where that is unknown.
        takes_pixels: an image of whole numbers from 0 to 255 goes in, and its session rounds to such.
        gives_probabilities: its session gives their logarithms in the place of logits.
        further: inputs, all but the first.
    """

    input: Tensor
    outputs: tuple[Tensor, ...]
    example: Shape
    takes_pixels: bool = False
    gives_probabilities: bool = False
    further: tuple[Tensor, ...] = ()

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """All of them, in order."""
        return (self.input, *self.further)

    @property
    def classes(self) -> int | None:
        """Of a classifier; None where the file gives something else, or does not say."""
        return self.outputs[0].shape[1] if len(self.outputs) == 1 and len(self.outputs[0].shape) == 2 else None


def read(file: Path) -> Signature | None:
    """What a file declares; None for an engine, which only its own runtime on a GPU can open.

    Raises:
        InputError: the file is missing, damaged or of another kind, or its one input is no batch of images.
    """
    found = backends.load(backends.by_suffix(file)).signature(file)
    if found and not found.further and len(found.input.shape) != 4:
        raise InputError(f"{file} takes {found.input.shape}, and not a batch of images (N, C, H, W).")
    return found
