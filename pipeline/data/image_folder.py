"""A folder of class folders: which images are in it, and how they are read by several processes.

Every image is held against the sha256 that its split recorded as it is read, which costs a hundredth of
decoding it.
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipeline.data import class_order, folder_layout
from pipeline.data.image_file import SUFFIXES, read
from pipeline.errors import InputError, shown

if TYPE_CHECKING:
    import torch


View = Callable[["torch.Tensor", "torch.Tensor"], tuple["torch.Tensor", "torch.Tensor"]]


class Beside(Protocol):
    """A file beside an image."""

    def read(self) -> "torch.Tensor":
        """What it holds, with a first axis of 1; InputError if it cannot be used."""
        ...


@dataclass(frozen=True)
class Item:
    """An image of a split: its number, where it is, the sha256 of its file, and what is known of it.

    Attributes:
        known: a label; the boxes; or what reads a mask or picture, as `annotated_folder.File` does.
    """

    number: int
    path: Path
    sha256: str
    known: "int | torch.Tensor | Beside"

    def read(self) -> "tuple[torch.Tensor, torch.Tensor]":
        """(1, 3, H, W) as `image_file.read` gives it, and a row of what is known of it. InputError as there."""
        return read(self.path, self.sha256)[None], _target(self.known)


class Readable(Protocol):
    """An image of any data set that is read one by one."""

    @property
    def number(self) -> int:
        """In the split."""
        ...

    def read(self) -> "tuple[torch.Tensor, torch.Tensor]":
        """The image and its target, with a first axis of 1; InputError if it cannot be used."""
        ...


@dataclass(frozen=True)
class Tree:
    """What an image folder holds.

    Attributes:
        classes: names of the class folders, in the order of their labels.
        images: paths relative to the root, sorted.
        labels: of each image.
        own_val: whether each image lies in the validation part; None where the folder has none of its own.
        other: files that are not images, which are not used.
        notes: sentences on parts that are not used, or not as their names say.
    """

    classes: tuple[str, ...]
    images: tuple[str, ...]
    labels: tuple[int, ...]
    own_val: tuple[bool, ...] | None
    other: tuple[str, ...]
    notes: tuple[str, ...] = ()


def scan(root: Path, order: str | Sequence[str] = "sorted") -> Tree:
    """Find the images of a folder of class folders, or of a training and a validation part with class folders in each.

    The class of an image is the name of the class folder, however deep below it the image lies.

    Args:
        root: the folder; see `folder_layout` for its parts.
        order: of the classes; see `class_order.ordered`.

    Raises:
        InputError: the folder is missing or empty, has one class, images outside any class folder, an empty class
            folder, parts that cannot be told from classes, classes in the validation part that the training part lacks,
            a link that leads back up, or a name that is not UTF-8 or not printable.
    """
    if not root.is_dir():
        raise InputError(
            f"data.root: {shown(root)} is not a folder. Name the folder that holds one folder of images per class."
        )
    layout = folder_layout.find(root)
    top = [layout.train] if layout.val is None else [layout.train, layout.val]
    found, other = _images_in(root, top)
    if not found:
        raise InputError(
            f"data.root: {shown(root)} holds no images ({', '.join(SUFFIXES)}). Put the images of each class into "
            f"a folder of its own, e.g. {shown(root / 'cat' / '1.jpg')}."
        )
    _check_names(root, found)
    inside = {part: f"{part}/" if part else "" for part in top}
    parts = [next(part for part in reversed(top) if name.startswith(inside[part])) for name in found]
    class_of = [_composed(name.removeprefix(inside[part]).rpartition("/")[0].partition("/")[0])
                for name, part in zip(found, parts, strict=True)]  # fmt: skip
    if loose := [name for name, one in zip(found, class_of, strict=True) if not one]:
        raise InputError(
            f"data.root: {root / loose[0]} lies in no class folder, so its class is unknown; {len(loose)} "
            "such. Move each into the folder of its class."
        )
    classes = [_composed(name) for name in folder_layout.folders(root / layout.train)]
    if twice := [name for name, count in Counter(classes).items() if count > 1]:
        raise InputError(
            f"data.root: {shown(root / layout.train)} has two class folders `{twice[0]}`, whose names differ only in "
            "how Unicode composes a character. Put the images of both into one."
        )
    filled = {one for one, part in zip(class_of, parts, strict=True) if part == layout.train}
    if empty := [name for name in classes if name not in filled]:
        raise InputError(
            f"data.root: the class folder {shown(root / layout.train / empty[0])} holds no image. Fill it or delete it."
        )
    if len(classes) < 2:
        raise InputError(
            f"data.root: {root / layout.train} holds one class folder, `{classes[0]}`, and a classifier needs two "
            "or more. Name the folder that holds one folder per class."
        )
    if unknown := sorted(set(map(_composed, folder_layout.folders(root / top[-1]))) - set(classes)):
        raise InputError(
            f"data.root: {shown(root / top[-1] / unknown[0])} is a class that {layout.train}/ does not have; "
            f"{layout.train}/ has {', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}. Give both the same "
            "class folders."
        )
    in_order = class_order.ordered(classes, order if isinstance(order, str) else list(map(_composed, order)))
    numbers = {name: number for number, name in enumerate(in_order)}
    return Tree(
        classes=in_order,
        images=tuple(found),
        labels=tuple(numbers[one] for one in class_of),
        own_val=None if layout.val is None else tuple(part == layout.val for part in parts),
        other=tuple(other),
        notes=layout.notes,
    )


def pictures(root: Path) -> Tree:
    """Find the images of a folder, however deep, whatever their folders are called: a tree without classes.

    Raises:
        InputError: the folder is missing or holds no image, a link leads back up, or a name is not UTF-8.
    """
    if not root.is_dir():
        raise InputError(f"data.root: {shown(root)} is not a folder. Name the folder that holds the pictures.")
    found, other = _images_in(root, [""])
    if not found:
        raise InputError(f"data.root: {shown(root)} holds no images ({', '.join(SUFFIXES)}). Put pictures there.")
    _check_names(root, found)
    return Tree(classes=(), images=tuple(found), labels=(), own_val=None, other=tuple(other))


def _images_in(root: Path, parts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Paths, relative to the root, of the images in some of its folders, and of the other files."""
    found, other = [], []
    for part in parts:
        for path in folder_layout.files_in(root / part):
            name = path.relative_to(root).as_posix()
            (found if path.suffix.lower() in SUFFIXES else other).append(name)
    return found, other


def _composed(name: str) -> str:
    """The name of a class folder as that of a class; a Mac's older file systems write an umlaut as two characters."""
    return unicodedata.normalize("NFC", name)


def _check_names(root: Path, names: Sequence[str]) -> None:
    """Split and bundle hold names as text, labels.txt one a line."""
    bad = [name for name in names if not name.isprintable()]
    if bad:
        raise InputError(
            f"data.root: {shown(root / bad[0])} has a name that is not UTF-8 or not printable (shown escaped); "
            f"{len(bad)} such. Rename them: convmv or a file manager converts names from another encoding."
        )


def batches(
    items: Sequence[Sequence[Readable]],
    view: View,
    workers: int,
    seed: int | None = None,
) -> Iterator[tuple["torch.Tensor", "torch.Tensor"]]:
    """Read batches of images.

    Args:
        items: the images of each batch.
        view: what makes (1, c, H, W) of one size out of (1, 3, H, W) as `image_file.read` gives it, and a target of a
            row of its target; it can be pickled.
        workers: processes that read ahead; 0 reads in this one.
        seed: of whatever ``view`` draws at random; each image has a seed of its own, so what comes out
            does not depend on the number of workers.

    Yields:
        (n, c, H, W) and the targets, a row an image.
    """
    from torch.utils.data import DataLoader

    loader = DataLoader(_Reader(items, view, seed), batch_size=None, shuffle=False, num_workers=workers)
    for batch in loader:
        if isinstance(batch, str):
            raise InputError(batch)
        yield batch


@dataclass(frozen=True)
class _Reader:
    """A batch by its number; an error comes as its text, since a worker would wrap it in a traceback."""

    items: Sequence[Sequence[Readable]]
    view: View
    seed: int | None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> "tuple[torch.Tensor, torch.Tensor] | str":
        import torch

        images, targets = [], []
        with torch.random.fork_rng(devices=[], enabled=self.seed is not None):
            for item in self.items[number]:
                if self.seed is not None:
                    torch.default_generator.manual_seed((self.seed + item.number) % 2**63)
                try:
                    image, target = self.view(*item.read())
                except InputError as error:
                    return str(error)
                images.append(image)
                targets.append(target)
        return torch.cat(images), joined(targets)


def joined(targets: "Sequence[torch.Tensor]") -> "torch.Tensor":
    """Targets of several images, a row each; of boxes, which differ in number, those missing have the class -1."""
    import torch

    most = max(one.shape[1] if one.dim() == 3 else 0 for one in targets)
    if all(one.dim() != 3 or one.shape[2] != 5 or one.shape[1] == most for one in targets):
        return torch.cat(list(targets))
    filled = torch.zeros(len(targets), most, 5)
    filled[..., 0] = -1
    for row, one in zip(filled, targets, strict=True):
        row[: one.shape[1]] = one[0]
    return filled


def _target(known: "int | torch.Tensor | Beside") -> "torch.Tensor":
    import torch

    if isinstance(known, int):
        return torch.tensor([known])
    return known[None] if isinstance(known, torch.Tensor) else known.read()
