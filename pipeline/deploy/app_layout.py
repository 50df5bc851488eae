"""Write a bundle into folders for an app's project: for Xcode, for an Android app's assets, and the whole bundle.

FOLDER/xcode/      drag into Xcode: the .mlpackage or .pte, labels.txt, Classifier.swift
FOLDER/android/    assets/ into src/main of the app: the .pte, labels.txt; Classifier.kt beside
FOLDER/bundle/     the whole bundle; see its README.md
"""

import os
import shutil
import tempfile
from pathlib import Path

from pipeline import backends
from pipeline.artifacts.bundle_result import BundleManifest
from pipeline.backends.base import AppLayout
from pipeline.deploy import bundle_file
from pipeline.errors import InputError


def lay_out(path: Path, folder: Path) -> str:
    """Write a bundle into folders for an app's project.

    Args:
        path: the bundle, a .tar.
        folder: the new folder, which must not exist or be empty. It appears whole or not at all.

    Returns:
        The next steps, as text.

    Raises:
        InputError: the bundle is damaged, or is for no app; the folder is not empty.
    """
    bundle = bundle_file.open_bundle(path)
    manifest = bundle.manifest
    app = backends.load(manifest.backend).bundle.app if manifest.backend in backends.names() else None
    if app is None:
        raise InputError(
            f"{path.name} is for {manifest.backend}, which no phone's app runs, so it cannot be laid out for one. "
            f"Install it on a device: repnets ship {path} ssh://user@host."
        )
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"{folder} is there already and is no empty folder. Name another, or remove it first.")
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.absolute().parent))
    try:
        bundle.unpack(fresh / "bundle")
        for name, targets in app.places.items():
            name = name.replace("@FILE@", manifest.file)
            if (fresh / "bundle" / name).exists():  # what tells classes apart is in a classifier's alone
                _copy(fresh, name, targets.split())
        fresh.chmod(0o755)
        os.replace(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return _next_steps(folder, manifest, app)


def _copy(fresh: Path, name: str, targets: list[str]) -> None:
    source = fresh / "bundle" / name
    for target in targets:
        place = fresh / target / source.name
        place.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, place)


def _next_steps(folder: Path, manifest: BundleManifest, app: AppLayout) -> str:
    file = manifest.file
    lines = app.next_steps.format(folder=folder, file=file, stem=Path(file).stem)
    return (
        f"{manifest.model} for {manifest.target}, {manifest.digest[:12]}, laid out in {folder}\n\n{lines}\n"
        "Before you trust it: put golden/input0.bin of the bundle through the app once, and compare with output0.bin."
    )
