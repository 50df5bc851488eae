"""Data sets, their fixed split, and the way from an image to the network's input.

A split names every file it was made from by sha256, so a data set that changed under it is noticed.
Images of the validation part, which also calibrates and proves, are never augmented.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pipeline import regular_file
from pipeline.artifacts import digests, manifest
from pipeline.artifacts.manifest import ColorOrder, ImageSize, Preprocessing, Resize, channels_of
from pipeline.data import (
    annotated_folder,
    folder_layout,
    image_folder,
    own_data,
    prepared_images,
    samples,
    targets,
    transforms,
)
from pipeline.data.datasets import (
    CLASSIFICATION,
    COCO,
    FACTS,
    MASKS,
    NONE,
    OF_FILES,
    PICTURES,
    PIXELS,
    UNKNOWN,
    UNLABELLED,
    Facts,
    Images,
    files_of,
    is_own,
    read_images,
)
from pipeline.errors import InputError, quoted
from pipeline.tasks.base import Targets

if TYPE_CHECKING:
    import torch

_READ_AT_ONCE = 64
_MOST_BYTES = 1_000_000_000  # of split.json; ImageNet's is a tenth of it


@dataclass(frozen=True)
class Use:
    """What a data set is used for.

    Attributes:
        task: ``classification`` or another of `pipeline.tasks`; empty where nothing is known of the network.
        scale: of pictures that a network gives, how many times as large as the input they are.
        kind: of what is known of each image.
        code: digest of the code of a task of the user's own.
    """

    task: str = CLASSIFICATION
    scale: int = 1
    kind: Targets = "label"
    code: str = ""


@dataclass(frozen=True)
class Split:
    """A data set and its fixed parts, as split.json holds them.

    Attributes:
        name, root: of the data set, as configured.
        classes: name of each label.
        sources: sha256 of every file, by name; for an image folder one entry an image.
        labels: of each source, for an image folder; empty for the others.
        parts: numbers of the images in ``train`` and in ``val``.
        digest: sha256 over all of the above but ``root``.
        use: what it is used for.
        beside: sha256 of each file that tells what is known of the images, by name: a mask or a better picture for each
            in the order of ``sources``, or COCO's annotations.
    """

    name: str
    root: str | None
    classes: tuple[str, ...]
    sources: Mapping[str, str]
    labels: tuple[int, ...]
    parts: Mapping[str, tuple[int, ...]]
    digest: str
    use: "Use"
    beside: Mapping[str, str]
    _mapped: dict[tuple[Any, ...], prepared_images.PreparedImages] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def size(self, part: str) -> int:
        """Number of images in ``train`` or ``val``."""
        return len(self.parts[part])

    @property
    def has_labels(self) -> bool:
        """Whether it is known what a network should give for an image; else all that is read is `datasets.UNKNOWN`."""
        of_pictures = self.use.kind == "picture" and self.name != NONE
        return of_pictures if self.name in UNLABELLED else bool(self.use.task)

    @property
    def is_of_classifier(self) -> bool:
        """Whether a network gives logits, one class an image."""
        return self.use.task == CLASSIFICATION

    @property
    def facts(self) -> Facts:
        """Statistics of the data set's pixels, and whether its images may be mirrored."""
        return PIXELS if self.use.kind == "picture" else FACTS.get(self.name, FACTS[PICTURES])

    @property
    def kind(self) -> Targets:
        """Of what is known of each image."""
        return self.use.kind if self.has_labels else "label"

    def preprocessing(
        self,
        image_size: ImageSize,
        interpolation: str = "bilinear",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        color_order: ColorOrder = "RGB",
        resize: Resize = "shorter_side_then_crop",
        pixel_range: int = 1,
        inputs: Mapping[str, Sequence[int]] | None = None,
    ) -> Preprocessing:
        """How an image of this data set becomes the input of a network, or which several inputs it takes.

        Args:
            image_size: pixels; see `Preprocessing`, as for `interpolation`, `color_order` and `resize`.
            mean, std: per channel in that order, of pixels in [0, ``pixel_range``]; default: the data set's own, and
                where ``pixel_range`` is 255 the pixels as they are.
            pixel_range: 1 or 255.
            inputs: of a network of several, the shape of each by its name; nothing else is looked at then.
        """
        if inputs is not None:
            return samples.preprocessing(inputs, self.classes if self.is_of_classifier else ())
        if pixel_range == 1:
            mean, std = (own or self.facts.of(color_order, name) for name, own in (("mean", mean), ("std", std)))
        channels = channels_of(color_order)
        return Preprocessing(
            image_size=image_size,
            mean=tuple(one / pixel_range for one in mean or (0.0,) * channels),
            std=tuple(one / pixel_range for one in std or (1.0,) * channels),
            classes=self.classes if self.is_of_classifier else (),
            interpolation=interpolation,
            color_order=color_order,
            resize=resize,
        )

    def batches(
        self, part: str, preprocessing: Preprocessing, batch_size: int, workers: int = 2
    ) -> Iterator[tuple["torch.Tensor", "torch.Tensor"]]:
        """Images of a part in fixed order, never augmented; the last batch may be smaller.

        Those of ``val``, which every stage asks for, are decoded once a size: `prepared_images`.

        Args:
            part: ``train`` or ``val``.
            preprocessing: as the checkpoint's header gives it.
            batch_size: images in a batch.
            workers: processes that read images, for an image folder; default 2.

        Yields:
            float32 (n, C, height, width), or of several inputs the samples (n, numbers); and the targets, of `kind`, on
            the CPU.

        Raises:
            InputError: the data set is no longer the one that the split was made from, or does not give such inputs.
        """
        if preprocessing.inputs is not None:
            yield from samples.batches(self.name, self.items, self.parts[part], preprocessing.inputs, batch_size)
            return
        read = self._prepared if part == "val" else self._read
        for images, wanted in read(part, preprocessing, batch_size, workers):
            yield transforms.normalised(images, preprocessing).contiguous(), wanted

    def sample(self, part: str, count: int, seed: int = 0) -> "Split":
        """This split with so many images of a part alone, drawn at random: the same ones in the same order each time.

        A part that has no more is taken whole.
        """
        import torch

        numbers = self.parts[part]
        order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))[:count].tolist()
        return replace(self, parts={**self.parts, part: tuple(numbers[place] for place in order)})

    def share(self, part: str, rank: int, world: int) -> "Split":
        """This split with every ``world``-th image of a part alone, for one process of several."""
        if world == 1:
            return self
        mine = replace(self, parts={**self.parts, part: self.parts[part][rank::world]})
        if "images" in self.__dict__:
            mine.__dict__["images"] = self.images
        return mine

    @cached_property
    def images(self) -> Images:
        """The whole data set in memory; for all but an image folder. InputError where it has changed."""
        files = files_of(self.name, self.root)
        changed = [name for name, path in files.items() if digests.digest(path) != self.sources.get(name)]
        if changed:
            raise InputError(
                f"{files[changed[0]]} is not the file that the split was made from. "
                f"Run `python -m pipeline split` again, so that split and data belong together."
            )
        return read_images(self.name, files, self.use.kind)

    def _prepared(
        self, part: str, preprocessing: Preprocessing, batch_size: int, workers: int
    ) -> prepared_images.Batches:
        """As `_read`, out of the store."""
        numbers, how = self.parts[part], preprocessing
        shape = (part, how.size, how.interpolation, how.resize, how.color_order == "gray")
        if not numbers:
            return
        if shape not in self._mapped:
            read = partial(self._read, part, preprocessing, _READ_AT_ONCE, workers)
            self._mapped[shape] = prepared_images.prepare_once(self.digest, numbers, preprocessing, read)
        found = self._mapped[shape]
        yield from zip(found.pixels.split(batch_size), found.targets.split(batch_size), strict=True)

    def _read(self, part: str, preprocessing: Preprocessing, batch_size: int, workers: int) -> prepared_images.Batches:
        """Images of a part before they are normalised: float32 (n, 1 or 3, height, width) in [0, 1]."""
        numbers = self.parts[part]
        chunks = [list(numbers[at : at + batch_size]) for at in range(0, len(numbers), batch_size)]
        view = targets.View(preprocessing, self.kind, self.use.scale)
        if self.is_read_singly:
            yield from image_folder.batches(self.items(chunks), view, workers)
            return
        for chunk in chunks:
            yield view(self.images.pixels[chunk], self.images.targets[chunk])

    @property
    def is_read_singly(self) -> bool:
        """Whether it is read image by image: `items`; else all is held in memory: `images`."""
        return self.name in OF_FILES or is_own(self.name)

    def items(self, chunks: Sequence[Sequence[int]]) -> list[list[image_folder.Readable]]:
        """The images of some numbers, of a data set that is read image by image."""
        sources = list(self.sources.items())
        return [[self._item(number, *sources[number]) for number in chunk] for chunk in chunks]

    def _item(self, number: int, source: str, sha256: str) -> image_folder.Readable:
        if is_own(self.name):
            kind = self.use.kind if self.use.task else None
            return own_data.OwnItem(number, self.name, source, kind, len(self.classes), sha256)
        return image_folder.Item(number, Path(self.root or "").expanduser() / source, sha256, self._known[number])

    @cached_property
    def _known(self) -> "Sequence[int | torch.Tensor | image_folder.Beside]":
        """What is known of each image, in order."""
        root = Path(self.root or "").expanduser()
        if self.name == COCO:
            return list(annotated_folder.boxes_of(root, list(self.sources), *self.beside.values()))
        if self.beside:
            classes = len(self.classes) if self.name == MASKS else None
            return [annotated_folder.File(root / name, sha256, classes) for name, sha256 in self.beside.items()]
        return self.labels or (UNKNOWN,) * len(self.sources)


def new_split(
    name: str,
    root: str | None,
    classes: Sequence[str],
    sources: Mapping[str, str],
    labels: Sequence[int],
    parts: Mapping[str, Sequence[int]],
    use: Use | None = None,
    beside: Mapping[str, str] | None = None,
) -> Split:
    """A split, with its digest. `use` is by default that of a classifier, or without classes none."""
    use = use or Use(CLASSIFICATION if classes else "")
    content = [
        name,
        list(classes),
        list(sources.items()),
        list(labels),
        *(list(parts[k]) for k in ("train", "val")),
        *([] if use.task in ("", CLASSIFICATION) else [use.task, use.scale, use.kind]),
        *([list(beside.items())] if beside else []),
    ]
    return Split(
        name=name,
        root=root,
        classes=tuple(classes),
        sources=dict(sources),
        labels=tuple(labels),
        parts={part: tuple(numbers) for part, numbers in parts.items()},
        digest=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        use=use,
        beside=dict(beside or {}),
    )


def write_split(path: Path, split: Split) -> None:
    """Write split.json."""
    document: dict[str, Any] = {
        "name": split.name,
        "root": split.root,
        "digest": split.digest,
        "sizes": {part: len(numbers) for part, numbers in split.parts.items()},
        "classes": split.classes,
        "sources": split.sources,
        "labels": split.labels,
        "use": asdict(split.use),
        "beside": split.beside,
        **split.parts,
    }
    manifest.write_json(path, document)


def open_split(path: Path, trained_with: str | None = None) -> Split:
    """Read split.json.

    Args:
        path: of the file.
        trained_with: digest of the split that a checkpoint was made with, by its header: it must be this one, or images
            that the network was trained on may be among those that are held out.

    Raises:
        InputError: it is missing, is not a split, was edited since it was written, or is not the one of the checkpoint.
    """
    try:
        values = json.loads(regular_file.content_of(path, _MOST_BYTES))
        parts = {part: values[part] for part in ("train", "val")}
        use = Use(**values["use"])
        split = new_split(
            values["name"],
            values["root"],
            values["classes"],
            values["sources"],
            values["labels"],
            parts,
            use,
            values["beside"],
        )
        both = set(parts["train"]) & set(parts["val"])
        _require_types(split)
        edited = split.digest != values["digest"] or not (split.name in FACTS or is_own(split.name))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist. Make it with `python -m pipeline split --output {path}`.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise InputError(
            f"{path} is not a split ({quoted(repr(error))}). Make it anew with `python -m pipeline split`."
        ) from None
    if edited:
        raise InputError(
            f"{path} does not have the digest that it was written with, so it was edited or cut short. "
            f"Delete it and make it anew with `python -m pipeline split --output {path}`."
        )
    if both:
        raise InputError(
            f"{path}: {len(both)} images are in both parts, number {min(both)} for one, so they are trained on and "
            f"held out. Delete it and make it anew with `python -m pipeline split --output {path}`."
        )
    if trained_with not in (None, split.digest):
        raise InputError(
            f"{path} is not the split that the checkpoint was made with (digest {split.digest[:12]}, and in the "
            f"checkpoint's header {trained_with[:12]}), so images that it was trained on may be held out. Train or "
            "adopt it with this split, or bring back the other one."
        )
    return split


def _require_types(split: Split) -> None:
    """What a split names is of the types that it should be, and its numbers are of images; else ValueError."""
    named = (*split.sources.items(), *split.beside.items())
    texts = (split.name, *split.classes, *(text for pair in named for text in pair))
    if not all(isinstance(text, str) for text in texts) or not isinstance(split.root, str | None):
        raise ValueError("a name in it is no text")
    numbers = [*split.labels, *split.parts["train"], *split.parts["val"]]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("a number in it is no whole number")
    use = split.use
    if not (isinstance(use.task, str) and isinstance(use.code, str) and use.kind in get_args(Targets)):
        raise ValueError("what it is used for is not one of the tasks")
    if type(use.scale) is not int or use.scale < 1:
        raise ValueError("its scale is no whole number")
    each = split.beside and split.name != COCO
    if len(split.beside) not in ((len(split.sources),) if each else (0, 1)):
        raise ValueError("its images and the files beside them do not fit each other")
    if any(label >= len(split.classes) for label in split.labels):
        raise ValueError("a label in it is of no class")
    if split.labels and not len(split.labels) == len(split.sources) > max(numbers[len(split.labels) :], default=0):
        raise ValueError("its labels, its images and the numbers of its parts do not fit each other")


def listing(name: str, root: str | None, order: str | Sequence[str] = "sorted") -> str:
    """What tells, without reading any image, that a data set may have changed since its split was made.

    Sha256 over name, size and date of each file of an image folder, and of the file that gives the order of its
    classes; its name alone for the others, which are published once and for all. The stage `split` then looks at the
    contents, and says what is wrong where this only notes it.
    """
    if name not in OF_FILES:
        return name
    total = hashlib.sha256()
    named = [Path(os.path.expanduser(order))] if isinstance(order, str) else []
    try:
        for path in [*named, *folder_layout.files_in(Path(root or "").expanduser())]:
            total.update(os.fsencode(path))
            if path.exists():
                status = path.stat()
                total.update(f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    except (InputError, OSError) as error:
        total.update(str(error).encode(errors="backslashreplace"))
    return total.hexdigest()
