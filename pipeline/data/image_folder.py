"""A folder of class folders: which images are in it, and how they are read by several processes.

Every image is held against the sha256 that its split recorded as it is read, which costs a hundredth of
decoding it.
"""

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InputError

if TYPE_CHECKING:
    import torch

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Item:
    """An image of a split: its number, where it is, the sha256 of its file, and its label."""

    number: int
    path: Path
    sha256: str
    label: int


@dataclass(frozen=True)
class Tree:
    """What an image folder holds.

    Attributes:
        classes: names of the class folders, sorted.
        images: paths relative to the root, sorted.
        labels: of each image.
        own_val: whether each image lies in val/; None where the folder has no val/ of its own.
        other: files that are not images, which are not used.
    """

    classes: tuple[str, ...]
    images: tuple[str, ...]
    labels: tuple[int, ...]
    own_val: tuple[bool, ...] | None
    other: tuple[str, ...]


def files_in(root: Path) -> Iterator[Path]:
    """All files under a folder but hidden ones, links followed, in the order of their names."""
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from files_in(Path(entry.path))
        elif entry.is_file():
            yield Path(entry.path)


def scan(root: Path) -> Tree:
    """Find the images of a folder of class folders, or of train/ and val/ with class folders in each.

    The class of an image is the name of the class folder, however deep below it the image lies.

    Raises:
        InputError: the folder is missing or empty, has one class, images outside any class folder, an
            empty class folder, or classes in val/ that train/ lacks.
    """
    if not root.is_dir():
        raise InputError(
            f"data.root: {root} is not a folder. Name the folder that holds one folder of images per class."
        )
    parts = _parts(root)
    top = [f"{part}/" for part in parts] or [""]
    found, other = [], []
    for prefix in top:
        for path in files_in(root / prefix):
            name = path.relative_to(root).as_posix()
            (found if path.suffix.lower() in SUFFIXES else other).append(name)
    loose = [name for name in found if name.count("/") < (2 if parts else 1)]
    if not found:
        raise InputError(
            f"data.root: {root} holds no images ({', '.join(SUFFIXES)}). Put the images of each class into "
            f"a folder of its own, e.g. {root / 'cat' / '1.jpg'}."
        )
    if loose:
        raise InputError(
            f"data.root: {root / loose[0]} lies in no class folder, so its class is unknown; {len(loose)} "
            "such. Move each into the folder of its class."
        )
    folders = {prefix: _folders(root / prefix) for prefix in top}
    classes = tuple(folders[top[0]])
    for name in classes:
        if not any(image.startswith(f"{top[0]}{name}/") for image in found):
            raise InputError(
                f"data.root: the class folder {root / top[0] / name} holds no image. Fill it or delete it."
            )
    if len(classes) < 2:
        raise InputError(
            f"data.root: {root / top[0]} holds one class folder, `{classes[0]}`, and a classifier needs two "
            "or more. Name the folder that holds one folder per class."
        )
    unknown = sorted(set(folders[top[-1]]) - set(classes))
    if unknown:
        raise InputError(
            f"data.root: {root / 'val' / unknown[0]} is a class that train/ does not have; train/ has "
            f"{', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}. Give both the same class "
            "folders."
        )
    place = 1 if parts else 0
    numbers = {name: number for number, name in enumerate(classes)}
    return Tree(
        classes=classes,
        images=tuple(found),
        labels=tuple(numbers[name.split("/")[place]] for name in found),
        own_val=tuple(name.startswith("val/") for name in found) if "val" in parts else None,
        other=tuple(other),
    )


def read(path: Path, sha256: str | None = None) -> "torch.Tensor":
    """Decode an image to uint8 RGB of shape (3, H, W).

    Args:
        path: of the image.
        sha256: what its file must have; None to take it as it is.

    Raises:
        InputError: it cannot be decoded, or is no longer the image that the split was made from.
    """
    import numpy as np
    import torch
    from PIL import Image, UnidentifiedImageError

    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}. Restore it, or run the stage split again."
        ) from None
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(
            f"{path} is not the image that the split was made from; it has changed since. "
            f"Run `python -m pipeline split` again, so that split and data belong together."
        )
    try:
        with Image.open(io.BytesIO(content)) as image:
            pixels = np.array(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "it is empty" if not content else str(error).replace(repr(io.BytesIO()), "")
        reason = (
            "its content is no known image format" if isinstance(error, UnidentifiedImageError) and content else reason
        )
        raise InputError(f"{path} cannot be decoded: {reason}. Replace the file or delete it.") from None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def batches(
    items: Sequence[Sequence[Item]],
    view: Callable[["torch.Tensor"], "torch.Tensor"],
    workers: int,
    seed: int | None = None,
) -> Iterator[tuple["torch.Tensor", "torch.Tensor"]]:
    """Read batches of images.

    Args:
        items: the images of each batch.
        view: what makes (1, c, H, W) of one size out of uint8 (1, 3, H, W); it can be pickled.
        workers: processes that read ahead; 0 reads in this one.
        seed: of whatever ``view`` draws at random; each image has a seed of its own, so what comes out
            does not depend on the number of workers.

    Yields:
        (n, c, H, W) and int64 labels (n,).
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

    items: Sequence[Sequence[Item]]
    view: Callable[["torch.Tensor"], "torch.Tensor"]
    seed: int | None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> "tuple[torch.Tensor, torch.Tensor] | str":
        import torch

        images = []
        with torch.random.fork_rng(devices=[], enabled=self.seed is not None):
            for item in self.items[number]:
                if self.seed is not None:
                    torch.default_generator.manual_seed((self.seed + item.number) % 2**63)
                try:
                    images.append(self.view(read(item.path, item.sha256)[None]))
                except InputError as error:
                    return str(error)
        return torch.cat(images), torch.tensor([item.label for item in self.items[number]])


def _parts(root: Path) -> tuple[str, ...]:
    """("train", "val"), ("train",), or () where the class folders lie in the root itself."""
    if not (root / "train").is_dir() or not _folders(root / "train"):
        return ()
    return ("train", "val") if _folders(root / "val") else ("train",)


def _folders(root: Path) -> list[str]:
    if not root.is_dir():
        return []
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
