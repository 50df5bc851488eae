"""The data sets by name: what is known of them, which files they are read from, and how."""

import gzip
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.artifacts import store
from pipeline.artifacts.manifest import GRAY_OF_RGB, ColorOrder
from pipeline.data import annotated_folder, generated, photographs, scenes
from pipeline.errors import InputError
from pipeline.tasks.base import Targets

if TYPE_CHECKING:
    import torch

UNKNOWN = -1
"""The label of an image without one."""
FOLDER = "imagefolder"
PICTURES = "pictures"
NONE = "none"
SCENES = "digit_scenes"
PHOTOGRAPHS = "photographs"
MASKS, COCO, PAIRS = annotated_folder.MASKS, annotated_folder.COCO, annotated_folder.PAIRS
ANNOTATED = (MASKS, COCO, PAIRS)
OF_FILES = (FOLDER, PICTURES, *ANNOTATED)
"""Read image by image, from a folder."""
UNLABELLED = (PICTURES, NONE)
"""Without classes of their own: what a network says of an image is held against what it says in float."""
CLASSIFICATION = "classification"
KINDS: Mapping[str, tuple[Targets, ...]] = {
    SCENES: ("boxes", "mask"),
    PHOTOGRAPHS: ("picture",),
    FOLDER: ("label", "picture"),
    MASKS: ("mask",),
    COCO: ("boxes",),
    PAIRS: ("picture",),
    PICTURES: ("label", "mask", "boxes", "picture"),
    NONE: ("label", "mask", "boxes", "picture"),
}
"""What is known of a data set's images; of those that are not here, labels. Of the last two it need not be known."""
_DIGITS = "digits.csv.gz"
_OF_SCIKIT_LEARN = {
    "digits": (f"data/{_DIGITS}",),
    SCENES: (f"data/{_DIGITS}",),
    PHOTOGRAPHS: tuple(f"images/{file}" for file in photographs.FILES),
}
_DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class Facts:
    """What is known of a data set beforehand.

    Attributes:
        mean, std: of its pixels in [0, 1], per channel R, G, B.
        mirror: a mirrored image is still of its class, so training may flip it. Not so for digits.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    mirror: bool

    def of(self, color_order: ColorOrder, name: Literal["mean", "std"]) -> tuple[float, ...]:
        """Mean or std of the channels in their order; of gray, that of R, G and B weighted alike."""
        own: tuple[float, ...] = getattr(self, name)
        if color_order == "gray":
            return (sum(share * one for share, one in zip(GRAY_OF_RGB, own, strict=True)),)
        return own[::-1] if color_order == "BGR" else own


PIXELS = Facts((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), mirror=True)
"""Of pictures that are given and taken as they are, for restoration."""
FACTS = {
    "digits": Facts((0.3053, 0.3053, 0.3053), (0.3761, 0.3761, 0.3761), mirror=False),
    "fashion_mnist": Facts((0.2860, 0.2860, 0.2860), (0.3530, 0.3530, 0.3530), mirror=True),
    "cifar10": Facts((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), mirror=True),
    "cifar100": Facts((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), mirror=True),
    # the statistics of ImageNet, which photographs share
    SCENES: Facts((0.2496, 0.2496, 0.2496), (0.1357, 0.1357, 0.1357), mirror=False),
    PHOTOGRAPHS: PIXELS,
    **dict.fromkeys(
        (FOLDER, PICTURES, MASKS, COCO, PAIRS, NONE), Facts((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), mirror=True)
    ),
}
_FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


@dataclass(frozen=True)
class Images:
    """A data set that is held in memory.

    Attributes:
        pixels: uint8 (n, 1 or 3, H, W).
        targets: what is known of each, a row an image; see `pipeline.tasks.base.Targets`.
        classes: name of each label.
        own_val: number of the first image of the data set's own test part; n where it has none.
    """

    pixels: "torch.Tensor"
    targets: "torch.Tensor"
    classes: tuple[str, ...]
    own_val: int


def is_own(name: str) -> bool:
    """Whether a data set is the user's own: `module.path:name`."""
    return ":" in name


def files_of(name: str, root: str | None) -> dict[str, Path]:
    """The files that a data set held in memory is read from, downloaded where they are missing.

    Raises:
        InputError: a package or a file is missing and cannot be had.
    """
    if name == NONE:
        return {}
    if name in _OF_SCIKIT_LEARN:
        found = importlib.util.find_spec("sklearn")
        if found is None or not found.submodule_search_locations:
            raise InputError(
                f"data.name: {name} reads the images that scikit-learn carries, and it is not installed. "
                "Install it with `pip install scikit-learn`, or set data.name to another data set."
            )
        folder = Path(found.submodule_search_locations[0]) / "datasets"
        return {Path(file).name: folder / file for file in _OF_SCIKIT_LEARN[name]}
    place = Path(root).expanduser() if root else store.root() / "datasets"
    if name == "fashion_mnist":
        names = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
        places = [place, place / "FashionMNIST/raw"] + ([] if root else [_DEBIAN_FASHION])
    elif name == "cifar10":
        names, places = (
            [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"],
            ["cifar-10-batches-py"],
        )
    else:
        names, places = ["train", "test", "meta"], ["cifar-100-python"]
    for candidate in places:
        if all((place / candidate / file).exists() for file in names):
            return {file: place / candidate / file for file in names}
    _download({"fashion_mnist": "FashionMNIST"}.get(name, name.upper()), place)
    return files_of(name, str(place))


def read_images(name: str, files: Mapping[str, Path], kind: Targets = "label") -> Images:
    """A data set as tensors, its own test part last.

    Args:
        name: of the data set.
        files: that it is read from, by name.
        kind: of what is told of each image.

    Raises:
        InputError: a file does not hold what it should.
    """
    import torch

    if name == NONE:
        pixels = generated.pictures()
        return Images(pixels, torch.full((len(pixels),), UNKNOWN), (), 0)
    try:
        if name == "digits":
            return _digits(files[_DIGITS])
        if name == SCENES:
            return _scenes(files[_DIGITS], kind)
        if name == PHOTOGRAPHS:
            pixels, own_val = photographs.crops([files[file] for file in photographs.FILES])
            return Images(pixels, torch.full((len(pixels),), UNKNOWN), (), own_val)
        if name == "fashion_mnist":
            pixels, labels = zip(*(_idx(files, part) for part in ("train", "t10k")), strict=True)
            return Images(torch.cat(pixels), torch.cat(labels), _FASHION_CLASSES, len(pixels[0]))
        return _cifar(name, next(iter(files.values())).parent.parent)
    except (OSError, EOFError, ValueError, RuntimeError) as error:
        where = next(iter(files.values())).parent
        raise InputError(
            f"{name} cannot be read out of {where}: {error}. Delete the broken file and run again, so that "
            "it is fetched anew."
        ) from None


def _digits(path: Path) -> Images:
    import numpy as np
    import torch

    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",")
    pixels = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    return Images(torch.from_numpy(pixels), labels, tuple("0123456789"), len(labels))


def _scenes(path: Path, kind: Targets) -> Images:
    import torch

    digits = _digits(path)
    made = scenes.make(digits.pixels[:, 0].numpy(), digits.targets.numpy())
    pixels, masks, boxes = map(torch.from_numpy, made)
    if kind == "mask":
        return Images(pixels[:, None], masks, ("background", *digits.classes), scenes.TRAIN)
    return Images(pixels[:, None], boxes, digits.classes, scenes.TRAIN)


def _idx(files: Mapping[str, Path], part: str) -> tuple["torch.Tensor", "torch.Tensor"]:
    import numpy as np
    import torch

    with gzip.open(files[f"{part}-images-idx3-ubyte.gz"]) as file:
        pixels = np.frombuffer(bytearray(file.read()), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(files[f"{part}-labels-idx1-ubyte.gz"]) as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)
    if len(pixels) != len(labels):
        raise ValueError(f"{len(pixels)} images but {len(labels)} labels in the {part} files")
    return torch.from_numpy(pixels), torch.from_numpy(labels)


def _cifar(name: str, root: Path) -> Images:
    import numpy as np
    import torch
    from torchvision import datasets

    parts = [getattr(datasets, name.upper())(str(root), train=train) for train in (True, False)]
    pixels = np.concatenate([part.data for part in parts]).transpose(0, 3, 1, 2)
    labels = torch.tensor([*parts[0].targets, *parts[1].targets])
    return Images(
        torch.from_numpy(np.ascontiguousarray(pixels)), labels, tuple(parts[0].classes), len(parts[0].targets)
    )


def _download(dataset: str, place: Path) -> None:
    from torchvision import datasets

    print(f"{dataset} is not in {place}; downloading it", flush=True)
    try:
        getattr(datasets, dataset)(str(place), download=True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{dataset} is not in {place} and cannot be downloaded: {error}. Check the network, or copy the "
            "data set into that folder as torchvision lays it out, or set `data.root` to where it is."
        ) from None
