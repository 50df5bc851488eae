"""`repnets init`: a project in a folder of the user's own, built by the workflow of the installed package."""

import os
import re
from pathlib import Path
from typing import Any

import yaml

from pipeline import packaged
from pipeline.artifacts.atomic import replacing
from pipeline.artifacts.manifest import ImageSize
from pipeline.cli import discovery
from pipeline.cli.discovery import Checkpoint, Pictures
from pipeline.config.schema import is_name
from pipeline.errors import InputError, nearest, shown
from pipeline.models import networks

HELP = """\
Write a project into FOLDER: config.yaml, targets/, Snakefile, profiles/ and .gitignore. `snakemake --cores 4 all` there
builds what they name; results stay in FOLDER. Without options the project is the one that the README describes: two
networks, trained on scikit-learn's digits.

--data takes a folder of pictures, and config.yaml gets their classes, size and channels:
  CLASS/IMAGE, or train/CLASS/IMAGE and val/CLASS/IMAGE     a network is trained on them
  pictures without class folders                            for a checkpoint of your own; see docs/your-own-network.md
--checkpoint takes a .safetensors, .pth, .pt or .ckpt, and config.yaml gets its network, classes and input size, as far
as the file tells them. No code in it is run. Without --data, exported files are verified on generated images, and
targets of int8 are left out.

A file that exists is never changed, except with --force.

Exit code 0: the files were written. 2: nothing was written, and the message says why.

examples:
  repnets init
  repnets init screws --data /data/screws --arch mobileone_s0 --target executorch --target coreml
  repnets init a0 --checkpoint RepVGG-A0-train.pth --data /data/photos
  repnets init fastvit --checkpoint mine.pth --arch timm:fastvit_t8
"""

_SNAKEFILE = """\
# Builds what config.yaml and targets/ name, with the workflow of the installed repnets: snakemake --cores 4 all
from pipeline import packaged
include: packaged.SNAKEFILE
"""
_IGNORED = """\
.snakemake/
__pycache__/
/artifacts/
/logs/
/dist/
/report.md
/targets/*/bench.json
/targets/*/*/
"""
_PROFILE = "profiles/default/config.yaml"
_DEFAULT_ARCH = "repvgg_a0"
_OF_IMAGENET = 224  # pixels
_CONFIG = """\
# What is built. Targets are declared beside it, in targets/<name>/target.yaml.
# Any value can be changed on the command line: --config 'training={epochs: 3}'

"""
_ROOT = "imagefolder: folder of class folders; pictures: folder of images; cifar: where to download to"
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


def init(
    folder: Path,
    data: Path | None = None,
    checkpoint: Path | None = None,
    arch: str | None = None,
    targets: list[str] | None = None,
    force: bool = False,
) -> None:
    """Write a project.

    Args:
        folder: of the project; it is made if it is not there.
        data: a folder of pictures.
        checkpoint: of a trained network.
        arch: the network, as config.yaml names it; default: what the checkpoint tells, else repvgg_a0.
        targets: names of the shipped targets to write; default: all.
        force: replace files that exist.

    Raises:
        InputError: a file exists and `force` is not given; the data or the checkpoint cannot be used; they do not fit
            each other; there is no such network or target; a file cannot be written. Nothing was written but in the
            last case.
    """
    files = _copied(targets) | {"Snakefile": _SNAKEFILE, ".gitignore": _IGNORED, "config.yaml": ""}
    _require_free(folder, list(files), force)
    if arch:
        networks.check(arch)
    weights = discovery.checkpoint(checkpoint, arch) if checkpoint else None
    images = discovery.pictures(data) if data else None
    files["config.yaml"] = _config(folder, images, weights, arch)
    try:
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with replacing(folder / name) as fresh:
                fresh.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{shown(folder / name)} cannot be written: {error.strerror}. Name another folder, or free this one."
        ) from None
    _tell(folder, images, weights)


def _copied(targets: list[str] | None) -> dict[str, str]:
    """The shipped files that are copied as they are, by their names in the project."""
    shipped = sorted(path.parent.name for path in packaged.FOLDER.glob("targets/*/target.yaml"))
    for name in targets or ():
        if name not in shipped:
            raise InputError(f"--target: no target `{name}` is shipped{nearest(name, shipped)}")
    names = [f"targets/{name}/target.yaml" for name in targets or shipped]
    return {name: (packaged.FOLDER / name).read_text(encoding="utf-8") for name in (*names, _PROFILE)}


def _require_free(folder: Path, files: list[str], force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{shown(folder)} is a file, and a project is a folder. Name another.")
    for package in ("pipeline", "repnets"):
        for own in (folder / f"{package}.py", folder / package / "__init__.py"):
            if own.exists() and packaged.FOLDER != folder.resolve():
                raise InputError(
                    f"{shown(own)} would be imported in place of the installed `{package}`. Rename it, or name another "
                    "folder."
                )
    there = [name for name in files if os.path.lexists(folder / name)]
    if there and not force:
        raise InputError(
            f"{shown(folder)} holds {', '.join(there)} already, and nothing was written. Name another folder, or "
            "replace them with --force."
        )


def _config(folder: Path, images: Pictures | None, weights: Checkpoint | None, arch: str | None) -> str:
    """The text of config.yaml."""
    if images is None and weights is None:
        models = [f"  {_name(arch)}:{_arch(arch)}"] if arch else ["  toy:", "  repvgg_a0:"]
    else:
        arch = weights.arch if weights else arch or _DEFAULT_ARCH
        models = [f"  {_name(arch)}:{_arch(arch)}"]
    if weights:
        models.append(_line("checkpoint", _place(weights.path, folder), f"{weights.layout}; its code is never run", 4))
    data = "\n".join(["data:", *_data(folder, images, weights)])
    names = "\n".join(
        ["# Names of networks. Under a name: arch, checkpoint, image_size, training.", "models:", *models]
    )
    return f"{_CONFIG}{data}\n\n{names}\n{'' if weights else _TRAINING}{_VERIFY}"


def _data(folder: Path, images: Pictures | None, weights: Checkpoint | None) -> list[str]:
    """The lines under `data:`."""
    has_labels = bool(images and images.classes)
    if images and not has_labels and weights is None:
        raise InputError(
            f"--data: the pictures in {shown(images.root)} lie in no class folders, and without classes no network can "
            "be trained. Put the pictures of each class into a folder of its own, or give a trained network with "
            "--checkpoint."
        )
    if images is None:
        name = "none" if weights else "digits"
    else:
        name = "imagefolder" if has_labels else "pictures"
    kinds = "digits, fashion_mnist, cifar10, cifar100, imagefolder; without labels: pictures, none"
    lines = [_line("name", name, kinds), _line("root", images and _place(images.root, folder), _found(images) or _ROOT)]
    if classes := _classes(images, weights):
        what = "in the order of the checkpoint" if has_labels else "that the network tells apart"
        lines.append(_line("classes", classes, what))
    lines.append(_line("image_size", *_size(images, weights)))
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


def _size(images: Pictures | None, weights: Checkpoint | None) -> tuple[ImageSize, str]:
    """The size of the input, and how it was found."""
    what = "side of the square input, or [height, width]; pixels"
    if weights and weights.header:
        return weights.header.preprocessing.image_size, f"{what}: the checkpoint's"
    if weights:
        return _OF_IMAGENET, f"{what}: the checkpoint does not tell it; correct it if need be"
    if images:
        return images.image_size, what
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
        named = f" ({', '.join(told[:5])}{', ...' if count > 5 else ''})" if isinstance(told, tuple) else ""
        raise InputError(
            f"{shown(weights.path)} tells {count} classes apart{named}, and {shown(images.root)} has "
            f"{len(images.classes)} class folders ({', '.join(images.classes[:5])}"
            f"{', ...' if len(images.classes) > 5 else ''}). Name the folder that it was trained on; leave out "
            "--checkpoint to train a new network; or leave out --data, and set in config.yaml `data: {name: pictures, "
            "root: FOLDER}` to use the pictures without their classes."
        )
    return list(told) if isinstance(told, tuple) and told != images.classes else None


def _name(arch: str) -> str:
    """The name of a model in config.yaml: that of its network, as far as it can be a folder's."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", arch.rpartition(":")[2])[:64]
    return name if is_name(name) else "model"


def _arch(arch: str) -> str:
    return "" if _name(arch) == arch else f"\n    arch: {_yaml(arch)}"


def _place(path: Path, folder: Path) -> str:
    """A path as config.yaml names it: from the folder of the project, if it lies in it."""
    absolute, project = Path(os.path.abspath(path)), Path(os.path.abspath(folder))
    if not str(absolute).isprintable():
        raise InputError(f"{shown(path)} has a name that is not UTF-8 or not printable. Rename it.")
    return str(absolute.relative_to(project)) if absolute.is_relative_to(project) else str(absolute)


def _found(images: Pictures | None) -> str:
    if images is None:
        return ""
    among = f" in {len(images.classes)} classes" if images.classes else ", without classes"
    return f"{images.count:,} pictures{among}"


def _line(key: str, value: Any, comment: str, indent: int = 2) -> str:
    return f"{' ' * indent}{key}: {_yaml(value)}".ljust(23) + f" # {comment}"


def _yaml(value: Any) -> str:
    """A value in one line of YAML."""
    value = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10**9)
    return text.strip()[1:-1]


def _tell(folder: Path, images: Pictures | None, weights: Checkpoint | None) -> None:
    """What was found and written, and how to go on."""
    if weights:
        classes = weights.classes if isinstance(weights.classes, int) else len(weights.classes)
        told = f"{classes:,} classes" if classes else "no classifier"
        print(f"found: {shown(weights.path.name)}: {weights.arch}, {weights.layout}, {told}")
    if images:
        names = f" ({', '.join(images.classes[:5])}{', ...' if len(images.classes) > 5 else ''})"
        print(f"found: {shown(images.root)}: {_found(images)}{names if images.classes else ''}; {images.color_order}")
        for note in images.notes:
            print(f"note: {note}")
        if images.broken:
            print(f"warning: the build will stop at pictures that cannot be read. {' '.join(images.broken)}")
    print(f"wrote the project {shown(folder.absolute())}: config.yaml says what is built, targets/ for which devices")
    print("go on there with: snakemake --cores 4 all")
