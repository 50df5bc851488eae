"""The text of config.yaml for a new project, with a comment on each line that says what it can be."""

import os
import re
from pathlib import Path
from typing import Any

import yaml

from pipeline.artifacts.manifest import ImageSize
from pipeline.cli.discovery import Checkpoint, Pictures
from pipeline.config.schema import is_name
from pipeline.errors import InputError, shown
from pipeline.models import networks

_DEFAULT_ARCH = "repvgg_a0"
_OF_IMAGENET = 224  # pixels
_TOP = """\
# What is built. Targets are declared beside it, in targets/<name>/target.yaml.
# Any value can be changed on the command line: --config 'training={epochs: 3}'
"""
_MODELS = """
# Names of networks. Under a name: arch, checkpoint, image_size, training.
models:
"""
_TRAINING = """
training:
  epochs: 10
  batch_size: 32
  learning_rate: 0.1
"""
_VERIFY = """
verify:
  float64_tolerance: 1.0e-9
"""
_ROOT = "imagefolder: folder of class folders; pictures: folder of images; cifar: where to download to"
_NAMED = 5  # classes in a message


def config_text(
    folder: Path,
    images: Pictures | None = None,
    weights: Checkpoint | None = None,
    arch: str | None = None,
    image_size: ImageSize | None = None,
) -> str:
    """The text of a project's config.yaml.

    Args:
        folder: of the project; paths in it are relative to it.
        images: to train on, or to check with; None: scikit-learn's digits, or no data where there are weights.
        weights: of a trained network; None: train one.
        arch: the network, where there are no weights; default: repvgg_a0, and for the digits the toy too.
        image_size: of the input, pixels; default: what the checkpoint or the images tell.

    Raises:
        InputError: pictures without classes, and no weights; other classes than the checkpoint's.
    """
    if weights is None and images and not images.classes:
        raise InputError(
            f"--data: the pictures in {shown(images.root)} lie in no class folders, and without classes no network can "
            "be trained. Put the pictures of each class into a folder of its own, or give a trained network with "
            "--checkpoint."
        )
    lines = [_TOP, "data:", *_data(folder, images, weights, image_size), _MODELS.rstrip("\n")]
    if images or weights or arch:
        lines += _model(folder, weights, arch or _DEFAULT_ARCH)
    else:
        lines += ["  toy:", "  repvgg_a0:"]
    return "\n".join(lines) + "\n" + ("" if weights else _TRAINING) + _VERIFY


def found(images: Pictures) -> str:
    """How many pictures and classes there are, in words."""
    return f"{images.count:,} pictures" + (f" in {len(images.classes)} classes" if images.classes else "")


def first(names: tuple[str, ...]) -> str:
    """The first names of classes, in brackets."""
    return f"({', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''})"


def _model(folder: Path, weights: Checkpoint | None, arch: str) -> list[str]:
    """The lines of the one model."""
    arch = weights.arch if weights else arch
    name = re.sub(r"[^A-Za-z0-9._-]", "_", arch.rpartition(":")[2])[:64]
    name = name if is_name(name) else "model"
    lines = [f"  {name}:"]
    if name != arch:
        lines.append(f"    arch: {_yaml(arch)}")
    if weights:
        place = _place(weights.path, folder)
        lines.append(_line("checkpoint", place, f"{weights.layout}; nothing in it is executed", indent=4))
    return lines


def _data(folder: Path, images: Pictures | None, weights: Checkpoint | None, image_size: ImageSize | None) -> list[str]:
    """The lines under `data:`."""
    name = _source(images, weights)
    lines = [
        _line("name", name, "digits, fashion_mnist, cifar10, cifar100, imagefolder; without labels: pictures, none")
    ]
    if images:
        lines.append(_line("root", _place(images.root, folder), found(images)))
    elif weights is None:
        lines.append(_line("root", None, _ROOT))
    if classes := _classes(images, weights):
        lines.append(_line("classes", classes, "as the checkpoint has them"))
    task = networks.task_of(weights.arch) if weights and name in ("none", "pictures") else None
    if task not in (None, "classification"):
        lines.append(_line("task", task, "what the network is for"))
    size = (image_size, "pixels, as it was asked for") if image_size else _size(images, weights)
    lines.append(_line("image_size", *size))
    how = weights.header.preprocessing if weights and weights.header else None
    order = how.color_order if how else images.color_order if images and not weights else "RGB"
    if order != "RGB":
        lines.append(_line("color_order", order, "RGB, BGR, gray"))
    if how and how.resize != "shorter_side_then_crop":
        lines.append(_line("resize", how.resize, "shorter_side_then_crop, stretch, letterbox"))
    if how and how.interpolation != "bilinear":
        lines.append(_line("interpolation", how.interpolation, "bilinear, bicubic"))
    if name != "none":
        lines.append(_line("val_fraction", 0.2, "held out where the data has no split of its own"))
    return lines


def _source(images: Pictures | None, weights: Checkpoint | None) -> str:
    """`data.name`."""
    if images is None:
        return "none" if weights else "digits"
    return "imagefolder" if images.classes else "pictures"


def _size(images: Pictures | None, weights: Checkpoint | None) -> tuple[ImageSize, str]:
    """The size of the input, and how it was found."""
    if weights and weights.header:
        return weights.header.preprocessing.image_size, "pixels, as the checkpoint says"
    if weights:
        return _OF_IMAGENET, "pixels; the checkpoint does not say, so correct it if this is not its size"
    if images:
        return images.image_size, "side of the square input, or [height, width]; pixels"
    return 32, "side of the square input, pixels"


def _classes(images: Pictures | None, weights: Checkpoint | None) -> int | list[str] | None:
    """`data.classes`; None to leave it out.

    Raises:
        InputError: the checkpoint's classes are not those of the class folders.
    """
    told = weights.classes if weights else 0
    if not weights or not images or not images.classes:
        return list(told) if isinstance(told, tuple) else told or None
    count = told if isinstance(told, int) else len(told)
    if count != len(images.classes) or (isinstance(told, tuple) and set(told) != set(images.classes)):
        named = f" {first(told)}" if isinstance(told, tuple) else ""
        raise InputError(
            f"{shown(weights.path)} tells {count} classes apart{named}, and {shown(images.root)} has "
            f"{len(images.classes)} class folders {first(images.classes)}. Name the folder that it was trained on; "
            "leave out --checkpoint to train a new network; or leave out --data, and set in config.yaml `data: {name: "
            "pictures, root: FOLDER}` to use the pictures without their classes."
        )
    return list(told) if isinstance(told, tuple) and told != images.classes else None


def _place(path: Path, folder: Path) -> str:
    """A path as config.yaml names it: from the folder of the project, if it lies in it."""
    absolute, project = Path(os.path.abspath(path)), Path(os.path.abspath(folder))
    if not str(absolute).isprintable():
        raise InputError(f"{shown(path)} has a name that is not UTF-8 or not printable. Rename it.")
    return str(absolute.relative_to(project)) if absolute.is_relative_to(project) else str(absolute)


def _line(key: str, value: Any, comment: str, indent: int = 2) -> str:
    return f"{' ' * indent}{key}: {_yaml(value)}".ljust(23) + f" # {comment}"


def _yaml(value: Any) -> str:
    """A value in one line of YAML."""
    value = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10**9)
    return text.strip()[1:-1]
