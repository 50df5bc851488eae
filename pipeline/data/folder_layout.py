"""The layout of an image folder: class folders in the root, or in a training part and a validation part.

Parts go by many names (train, Training, seg_train, training_set; val, valid, validation; test), and may be nested, as
seg_train/seg_train. What cannot be told apart from a class is refused.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.image_file import SUFFIXES
from pipeline.errors import InputError, shown

_PART = re.compile(
    r"(?:(?:seg|images?|data)[ _-]?)?"
    r"(?:(?P<train>train(?:ing)?)|(?P<val>val(?:id(?:ation)?)?|dev|eval(?:uation)?)|(?P<test>tests?|testing))"
    r"(?:[ _-]?(?:set|data|images?))?[ _-]?\d*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Layout:
    """Where the class folders are.

    Attributes:
        train: folder that holds them, relative to the root; empty for the root itself.
        val: folder that holds those of the validation images; None where there is none.
        notes: sentences on what is not used, or not used as its name says.
    """

    train: str = ""
    val: str | None = None
    notes: tuple[str, ...] = ()


def files_in(root: Path) -> Iterator[Path]:
    """All that is no folder under a folder, but hidden ones, links followed, in the order of their names.

    Raises:
        InputError: a folder cannot be read, or a link leads back to a folder that it lies in.
    """
    yield from _below(root, ())


def _below(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    try:
        status = folder.stat()
        here = (status.st_dev, status.st_ino)
        if here in above:
            raise InputError(
                f"{shown(folder)} is a link that leads back to a folder that it lies in, so its images "
                "would be read without end. Delete the link."
            )
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{shown(folder)} cannot be read: {error.strerror}.") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if os.path.isdir(entry.path):
            yield from _below(Path(entry.path), (*above, here))
        else:
            yield Path(entry.path)


def folders(root: Path) -> list[str]:
    """Names of the folders in a folder but hidden ones, sorted; none where there is no such folder."""
    if not root.is_dir():
        return []
    return sorted(name for name in os.listdir(root) if not name.startswith(".") and os.path.isdir(root / name))


def has_images(root: Path) -> bool:
    """Whether an image lies in a folder, however deep."""
    return any(path.suffix.lower() in SUFFIXES for path in files_in(root))


def find(root: Path) -> Layout:
    """The layout of an image folder.

    Raises:
        InputError: parts and classes cannot be told apart, or a part has no class folders.
    """
    parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    others = []
    for name in folders(root):
        found = _PART.fullmatch(name)
        (parts[found.lastgroup] if found else others).append(name)
    if not parts["train"] and not (parts["val"] or (parts["test"] and not others)):
        return Layout()
    places = {name: _nested(root, name) for part in parts.values() for name in part}
    split = {name for name, place in places.items() if _is_split(root / place)}
    others = [name for name in others if has_images(root / name)]
    if others and not split:
        return Layout()  # a class may well be called `train`
    for names in parts.values():
        if len(names) > 1:
            raise InputError(
                f"data.root: {shown(root)} holds {' and '.join(map(shown, names))}, which both name the same part. "
                "Keep one of them there."
            )
    train, val, test = (next(iter(names), None) for names in parts.values())
    if train is None or train not in split:
        raise InputError(
            f"data.root: {shown(root)} holds {_list([name for name in (train, val, test) if name])}, which name parts "
            "of a data set and not classes, but no training part with one folder of images per class. Lay it out as "
            "train/CLASS/IMAGE and val/CLASS/IMAGE, or CLASS/IMAGE."
        )
    if val is not None and val not in split and has_images(root / val):
        raise InputError(
            f"data.root: {shown(root / val)} holds images but no class folders, so their classes are unknown. Move "
            f"each into the folder of its class, as in {shown(train)}/, or delete the folder."
        )
    held = next((name for name in (val, test) if name in split), None)
    if others and held is None:
        raise InputError(
            f"data.root: {shown(root)} holds class folders in {shown(train)}/, and beside it {_list(others)} with "
            f"images: {shown(train)} may be a part of the data set or a class. Name the folder whose folders are the "
            "classes, or move the others away."
        )
    notes = [
        f"{shown(name)}/ is not used" for name in (*others, test) if name and name != held and has_images(root / name)
    ]
    if held is not None and held == test:
        notes.append(f"{shown(test)}/ is the validation part, since there is no other")
    return Layout(places[train], held and places[held], tuple(notes))


def _nested(root: Path, name: str) -> str:
    """The path of a part, or of the one folder in it that names the same part, as in seg_train/seg_train."""
    inner = folders(root / name)
    if len(inner) != 1 or not folders(root / name / inner[0]):
        return name
    kinds = [match and match.lastgroup for match in map(_PART.fullmatch, (name, inner[0]))]
    return f"{name}/{inner[0]}" if kinds[0] == kinds[1] else name


def _is_split(part: Path) -> bool:
    return any(has_images(part / name) for name in folders(part))


def _list(names: list[str]) -> str:
    return ", ".join(map(shown, names[:5])) + (", ..." if len(names) > 5 else "")
