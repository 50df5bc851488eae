"""The order of an image folder's classes: that of their names, or that of whoever trained a checkpoint."""

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline import regular_file
from pipeline.errors import InputError, quoted, shown

_MOST_BYTES = 16_000_000


def natural(names: Iterable[str]) -> tuple[str, ...]:
    """Names with the numbers in them by value: class2 before class10."""

    def key(name: str) -> list[tuple[int, int, str]]:
        return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]

    return tuple(sorted(names, key=lambda name: (key(name), name)))


def ordered(names: Sequence[str], order: str | Sequence[str]) -> tuple[str, ...]:
    """The classes of a data set in an order.

    Args:
        names: of the class folders.
        order: ``sorted``, ``natural``, all names, or the path of a JSON file: a list of names; or an object of names by
            number or numbers by name, as torchvision's `class_to_idx` and ImageNet's class index are.

    Raises:
        InputError: the list or file does not hold each class once.
    """
    if order == "sorted":
        return tuple(sorted(names))
    if order == "natural":
        return natural(names)
    if isinstance(order, str):
        source, given = f"data.classes: {shown(order)}", _read(Path(os.path.expanduser(order)), set(names))
    else:
        source, given = "data.classes", list(order)
    missing, unknown = sorted(set(names) - set(given)), sorted(set(given) - set(names))
    if missing or unknown or len(given) != len(names):
        wrong = [f"lacks `{quoted(missing[0])}`"] if missing else []
        wrong += [f"names `{quoted(unknown[0])}`, which is no class folder"] if unknown else []
        wrong = wrong or ["names a class twice"]
        raise InputError(f"{source} {' and '.join(wrong)}. List each of the {len(names)} class folders once.")
    return tuple(given)


def named(classes: int | str | Sequence[str]) -> tuple[str, ...]:
    """The classes of a network, where no folder tells them: so many, all names, or the path of a JSON file of them.

    Raises:
        InputError: the file is no index of classes.
    """
    if isinstance(classes, int):
        return tuple(map(str, range(classes)))
    if isinstance(classes, str):
        return tuple(_read(Path(os.path.expanduser(classes)), set()))
    return tuple(classes)


def _read(path: Path, names: set[str]) -> list[str]:
    try:
        return _names(json.loads(regular_file.content_of(path, _MOST_BYTES)), names)
    except OSError as error:
        raise InputError(
            f"data.classes: `{shown(path)}` is neither `sorted`, `natural`, a list of names, nor a file that can be "
            f"read ({error.strerror})."
        ) from None
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"data.classes: {shown(path)} is no index of classes ({quoted(error)}). Give a JSON list of names, or "
            'an object such as {"0": "cat", "1": "dog"} or {"cat": 0, "dog": 1}.'
        ) from None


def _names(index: Any, names: set[str]) -> list[str]:
    if isinstance(index, dict) and all(type(number) is int for number in index.values()):
        index = {str(number): name for name, number in index.items()}
    if isinstance(index, dict):
        if set(index) != set(map(str, range(len(index)))):
            raise ValueError("its numbers are not 0 to the number of classes less one, each once")
        index = [index[str(number)] for number in range(len(index))]
    if not isinstance(index, list):
        raise ValueError(f"it holds a {type(index).__name__}")
    # ImageNet's index gives several names of each class, one of which is that of its folder
    found = [next((name for name in one if name in names), one[0]) if isinstance(one, list) and one else one
             for one in index]  # fmt: skip
    if not all(isinstance(name, str) for name in found):
        raise ValueError("a name in it is no text")
    return found
