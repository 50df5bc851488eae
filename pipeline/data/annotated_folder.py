"""Folders of pictures with what is known of each beside them: masks, boxes, or a better picture.

    masks   images/NAME.jpg and masks/NAME.png, whose values are numbers of classes; 255 where it is not told
    coco    images/ and annotations.json, as COCO has it for detection (cocodataset.org/#format-data)
    pairs   low/NAME.png and high/NAME.png, the picture that the network is to give

Folders in these may be nested, alike on both sides.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import regular_file
from pipeline.data import class_order, image_file, image_folder
from pipeline.errors import InputError, quoted, shown
from pipeline.tasks.base import IGNORED

if TYPE_CHECKING:
    import torch

MASKS, COCO, PAIRS = "masks", "coco", "pairs"
ANNOTATIONS = "annotations.json"
_FOLDERS = {MASKS: ("images", "masks"), COCO: ("images", ""), PAIRS: ("low", "high")}
_MOST_BYTES = 1_000_000_000
Boxes = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class AnnotatedTree:
    """What such a folder holds.

    Attributes:
        images: paths relative to the root, sorted.
        beside: of each image its mask or better picture; of COCO the one file of annotations.
        classes: names; none of pairs.
        notes: sentences on what is not used.
    """

    images: tuple[str, ...]
    beside: tuple[str, ...]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class File:
    """A mask or picture that is what is known of an image.

    Attributes:
        path: of the file.
        sha256: that it must have.
        classes: of a mask, how many there are; None: it is a picture.
    """

    path: Path
    sha256: str
    classes: int | None

    def read(self) -> "torch.Tensor":
        """int64 (1, H, W) of a mask, or (1, 3, H, W) of a picture as `image_file.read` gives it."""
        if self.classes is None:
            return image_file.read(self.path, self.sha256)[None]
        return mask(self.path, self.classes, self.sha256)[None]


def scan(name: str, root: Path, classes: int | str | Sequence[str]) -> AnnotatedTree:
    """Find the images of such a folder, and what belongs to each.

    Args:
        name: `MASKS`, `COCO` or `PAIRS`.
        root: the folder.
        classes: of masks, how many, their names, or a JSON file of them.

    Raises:
        InputError: a folder is missing or empty; an image has no mask or picture beside it; annotations are not those
            of COCO, or name an image that is missing.
    """
    if name == COCO:
        annotations = _read(root / ANNOTATIONS)
        missing = [one for one in annotations.boxes if not (root / one).is_file()]
        if missing:
            raise InputError(
                f"data.root: {shown(root / ANNOTATIONS)} names {len(missing)} images that are not in "
                f"{shown(root / 'images')}, {quoted(missing[0].removeprefix('images/'))} for one. Put them there, or "
                "take them out of the annotations."
            )
        return AnnotatedTree(tuple(sorted(annotations.boxes)), (ANNOTATIONS,), annotations.classes, annotations.notes)
    own, others = _FOLDERS[name]
    images, beside = (_in_folder(root, folder) for folder in (own, others))
    if alone := sorted(images.keys() ^ beside.keys()):
        here, there = (own, others) if alone[0] in images else (others, own)
        raise InputError(
            f"data.root: {shown(root / here / alone[0])} has no file of that name in {shown(root / there)}; "
            f"{len(alone)} such. Each image needs what is known of it under its own name."
        )
    stems = sorted(images)
    found = class_order.named(classes) if name == MASKS else ()
    return AnnotatedTree(tuple(images[one] for one in stems), tuple(beside[one] for one in stems), found)


def mask(path: Path, classes: int, sha256: str | None = None) -> "torch.Tensor":
    """A mask: int64 (H, W).

    Raises:
        InputError: it cannot be decoded, is no picture of whole numbers with one channel, or has a class that there is
            not.
    """
    import torch

    found = torch.from_numpy(image_file.numbers(path, sha256))
    unknown = found[(found >= classes) & (found != IGNORED)]
    if len(unknown):
        raise InputError(
            f"{shown(path)} has the class {int(unknown[0])}, and there are {classes}, from 0 to {classes - 1}; "
            f"{IGNORED} is for pixels without one. Correct the mask, or data.classes."
        )
    return found


def require_alike(image: Path, beside: Path, classes: int) -> None:
    """InputError where a mask cannot be used, or is of another size than its image."""
    size, own = (tuple(one.shape[-2:]) for one in (image_file.read(image), mask(beside, classes)))
    if size != own:
        raise InputError(
            f"{shown(beside)} has {own[0]} x {own[1]} pixels and its image {size[0]} x {size[1]}. Make the mask anew "
            "at the size of its image."
        )


def boxes_of(root: Path, images: Sequence[str], sha256: str) -> "torch.Tensor":
    """float32 (n, most, 5), rows of class, x1, y1, x2, y2 in pixels of the image, class -1 where there is no more.

    Args:
        root: of the data set.
        images: in order.
        sha256: of its annotations.
    """
    import torch

    annotations = _read(root / ANNOTATIONS)
    if annotations.sha256 != sha256:
        raise InputError(
            f"{shown(root / ANNOTATIONS)} is not the file that the split was made from. Run `python -m pipeline split` "
            "again, so that split and data belong together."
        )
    most = max((len(one) for one in annotations.boxes.values()), default=0) or 1
    found = torch.zeros(len(images), most, 5)
    found[..., 0] = -1
    for row, image in zip(found, images, strict=True):
        for place, box in enumerate(annotations.boxes[image]):
            row[place] = torch.tensor(box)
    return found


@dataclass(frozen=True)
class _Annotations:
    classes: tuple[str, ...]
    boxes: Mapping[str, Boxes]
    notes: tuple[str, ...]
    sha256: str


def _read(path: Path) -> _Annotations:
    try:
        content = regular_file.content_of(path, _MOST_BYTES)
        document = json.loads(content)
        categories = sorted(document["categories"], key=lambda one: one["id"])
        numbers = {one["id"]: number for number, one in enumerate(categories)}
        names = {one["id"]: (str(one["file_name"]), one["width"], one["height"]) for one in document["images"]}
        boxes: dict[str, list[tuple[float, ...]]] = {f"images/{name}": [] for name, _, _ in names.values()}
        empty = crowds = 0
        for one in document["annotations"]:
            name, width, height = names[one["image_id"]]
            if one.get("iscrowd"):
                crowds += 1
                continue
            box = _box(one["bbox"], width, height)
            if box is None:
                empty += 1
            else:
                boxes[f"images/{name}"].append((float(numbers[one["category_id"]]), *box))
        classes = tuple(str(one["name"]) for one in categories)
    except OSError as error:
        raise InputError(f"{shown(path)} cannot be read: {error.strerror}. Put COCO's annotations there.") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{shown(path)} does not hold annotations as COCO has them for detection ({quoted(repr(error))}): `images` "
            "with id, file_name, width and height; `annotations` with image_id, category_id and bbox; `categories`."
        ) from None
    climbing = [name for name in boxes if ".." in Path(name).parts or not name.isprintable()]
    if climbing or not classes or not boxes:
        what = f"names the file {quoted(climbing[0])}" if climbing else "has no category or no image"
        raise InputError(f"{shown(path)} {what}. File names are those within images/.")
    notes = [f"{empty} boxes are empty or outside of their image, and are not used"] if empty else []
    notes += [f"{crowds} crowds are not used"] if crowds else []
    done = {name: tuple(found) for name, found in boxes.items()}
    return _Annotations(classes, done, tuple(notes), hashlib.sha256(content).hexdigest())


def _box(given: Any, width: float, height: float) -> tuple[float, ...] | None:
    """x1, y1, x2, y2 within the image, of COCO's x, y, width, height; None where nothing is left."""
    x, y, wide, high = map(float, given)
    if not all(map(math.isfinite, (x, y, wide, high))):
        raise ValueError(f"a box {given}")
    found = max(x, 0.0), max(y, 0.0), min(x + wide, float(width)), min(y + high, float(height))
    return found if found[2] > found[0] and found[3] > found[1] else None


def _in_folder(root: Path, folder: str) -> dict[str, str]:
    """Images of one of its folders, by name without suffix."""
    if not (root / folder).is_dir():
        raise InputError(f"data.root: {shown(root / folder)} is no folder. It holds one file for each image.")
    tree = image_folder.pictures(root / folder)
    return {str(Path(name).with_suffix("")): f"{folder}/{name}" for name in tree.images}
