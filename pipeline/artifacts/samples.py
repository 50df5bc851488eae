"""Samples of a network with several inputs.

Wherever samples are kept, compared or handed on, one sample is one row of numbers, all inputs one after the other; a
batch of them is float32 (N, numbers). `cut` is where rows become inputs: at the call of a network, and of a file. Of a
network of one image the sample is the image, (N, C, H, W).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import InputError

_A = TypeVar("_A")  # of numpy or torch


@dataclass(frozen=True)
class InputShape:
    """One of several inputs of a network.

    Attributes:
        name: of the parameter of the network's forward, and in exported files.
        shape: of one sample, without the batch.
    """

    name: str
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        """In a sample."""
        return math.prod(self.shape)


def cut(samples: _A, shapes: Sequence[Sequence[Any]]) -> list[_A]:
    """A batch of samples as the inputs of a network.

    Args:
        samples: (N, numbers); of one input they may be of its shape already.
        shapes: of each input, (N, ...); the N is not looked at.
    """
    if len(shapes) == 1 and len(samples.shape) == len(shapes[0]):
        return [samples]
    parts, begin = [], 0
    for _, *sizes in shapes:
        end = begin + math.prod(sizes)
        parts.append(samples[:, begin:end].reshape(len(samples), *sizes))
        begin = end
    return parts


def shape_of(shapes: Sequence[Sequence[int | None]]) -> tuple[int | None, ...]:
    """Shape of a batch of samples for inputs of some shapes, (N, ...) each."""
    if len(shapes) == 1:
        return tuple(shapes[0])
    return (shapes[0][0], sum(math.prod(sizes) for _, *sizes in shapes))


def fitting(samples: _A, shapes: Sequence[Sequence[int | None]], file: Path) -> list[_A]:
    """The inputs of a file for a batch of samples.

    Args:
        samples: as for `cut`.
        shapes: of the file's inputs; None for an axis of any size.
        file: for the message.

    Raises:
        InputError: the file takes other shapes.
    """
    wanted = shape_of(shapes)
    if len(samples.shape) != len(wanted) or any(
        size not in (given, None) for size, given in zip(wanted, samples.shape, strict=True)
    ):
        several = f"inputs of shapes {', '.join(str(tuple(one)) for one in shapes)}, samples of {wanted}"
        takes = several if len(shapes) > 1 else f"an input of shape {wanted}"
        raise InputError(f"{file} takes {takes}, but got {tuple(samples.shape)}.")
    return cut(samples, shapes)
