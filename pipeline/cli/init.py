"""`repnets init`: a project in a folder of the user's own, built by the workflow of the installed package."""

import os
from collections.abc import Mapping
from pathlib import Path

from pipeline import packaged
from pipeline.artifacts.atomic import replacing
from pipeline.cli import discovery
from pipeline.cli.discovery import Checkpoint, Pictures
from pipeline.cli.project_config import config_text, first, found
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
/report.html
/targets/*/bench.json
/targets/*/*/
"""
_PROFILE = "profiles/default/config.yaml"


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
    files = _copied(targets) | project_files() | {"config.yaml": ""}
    require_project_can_be(folder)
    _require_free(folder, list(files), force)
    if arch:
        networks.check(arch)
    weights = discovery.checkpoint(checkpoint, arch) if checkpoint else None
    images = discovery.pictures(data) if data else None
    files["config.yaml"] = config_text(folder, images, weights, arch)
    write(folder, files)
    tell_found(images, weights)
    print(f"wrote the project {shown(folder.absolute())}: config.yaml says what is built, targets/ for which devices")
    print("go on there with: snakemake --cores 4 all")


def shipped_targets() -> list[str]:
    """Names of the targets that are shipped, sorted."""
    return sorted(path.parent.name for path in packaged.FOLDER.glob("targets/*/target.yaml"))


def shipped_text(name: str) -> str:
    """A file that is shipped for projects, by its name in one, such as ``targets/coreml/target.yaml``."""
    return (packaged.FOLDER / name).read_text(encoding="utf-8")


def project_files() -> dict[str, str]:
    """The files of every project besides config.yaml and its targets, by their names."""
    return {_PROFILE: shipped_text(_PROFILE), "Snakefile": _SNAKEFILE, ".gitignore": _IGNORED}


def write(folder: Path, files: Mapping[str, str]) -> None:
    """Write files of a project, each whole or not at all.

    Args:
        folder: of the project; it is made if it is not there.
        files: texts, by names in the folder.

    Raises:
        InputError: one cannot be written.
    """
    try:
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with replacing(folder / name) as fresh:
                fresh.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{shown(folder / name)} cannot be written: {error.strerror}. Name another folder, or free this one."
        ) from None


def _copied(targets: list[str] | None) -> dict[str, str]:
    """The target.yaml of the shipped targets that are meant, by their names in the project."""
    shipped = shipped_targets()
    for name in targets or ():
        if name not in shipped:
            raise InputError(f"--target: no target `{name}` is shipped{nearest(name, shipped)}")
    return {place: shipped_text(place) for place in (f"targets/{name}/target.yaml" for name in targets or shipped)}


def require_project_can_be(folder: Path) -> None:
    """InputError where a folder cannot be that of a project: it is a file, or hides the installed packages."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{shown(folder)} is a file, and a project is a folder. Name another.")
    for package in ("pipeline", "repnets"):
        for own in (folder / f"{package}.py", folder / package / "__init__.py"):
            if own.exists() and folder.resolve() != packaged.FOLDER:
                raise InputError(
                    f"{shown(own)} would be imported in place of the installed `{package}`. Rename it, or name another "
                    "folder."
                )


def _require_free(folder: Path, files: list[str], force: bool) -> None:
    there = [name for name in files if os.path.lexists(folder / name)]
    if there and not force:
        raise InputError(
            f"{shown(folder)} holds {', '.join(there)} already, and nothing was written. Name another folder, or "
            "replace them with --force."
        )


def tell_found(images: Pictures | None, weights: Checkpoint | None) -> None:
    """Print what pictures and a checkpoint told of themselves."""
    if weights:
        classes = weights.classes if isinstance(weights.classes, int) else len(weights.classes)
        told = f"{classes:,} classes" if classes else "no classifier"
        print(f"found: {shown(weights.path.name)}: {weights.arch}, {weights.layout}, {told}")
    if images:
        names = f" {first(images.classes)}" if images.classes else ", in no class folders"
        print(f"found: {shown(images.root)}: {found(images)}{names}; {images.color_order}")
        for note in images.notes:
            print(f"note: {note}")
        if images.broken:
            print(f"warning: the build will stop at pictures that cannot be read. {' '.join(images.broken)}")
