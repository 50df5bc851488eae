"""metrics.jsonl: what the stage `train` notes of each epoch, a JSON object a line."""

import json
from dataclasses import dataclass
from pathlib import Path

from pipeline import regular_file
from pipeline.errors import InputError, quoted

_MOST_BYTES = 16_000_000
_FIELDS = ("epoch", "learning_rate", "loss", "images_per_second", "seconds")


@dataclass(frozen=True)
class Epoch:
    """One epoch.

    Attributes:
        epoch: its number, from 1.
        learning_rate: at its end.
        loss: mean over its batches, on training images.
        images_per_second, seconds: of the training part; of training and validation.
        score: on the validation images, by the metric of the task.
    """

    epoch: int
    learning_rate: float
    loss: float
    images_per_second: float
    seconds: float
    score: float


def read(path: Path) -> tuple[Epoch, ...]:
    """The epochs in a file.

    Raises:
        InputError: it is missing, or no such file.
    """
    try:
        content = regular_file.content_of(path, _MOST_BYTES)
        return tuple(_epoch(line) for line in content.decode().splitlines())
    except FileNotFoundError:
        raise InputError(f"{path} does not exist. The stage `train` writes it.") from None
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"{path} does not hold the epochs of a training ({quoted(why)}). Delete it and run again: the stage "
            "`train` writes it."
        ) from None


def _epoch(line: str) -> Epoch:
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError(f"a line holds a {type(record).__name__}")
    scores = [value for name, value in record.items() if name.startswith("val_")]
    values = [*(record.get(name) for name in _FIELDS), *scores]
    if len(scores) != 1 or not all(type(value) in (int, float) for value in values):
        raise ValueError("a line lacks a figure")
    return Epoch(*values)
