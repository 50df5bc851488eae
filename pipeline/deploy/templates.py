"""The texts and the code of a bundle, from the templates in shipped/ here and in the backend's folder.

Python files are shipped unchanged: they read bundle.json. In other files `@NAME@` is replaced by a value.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import backends
from pipeline.artifacts.bundle_result import BundledCheck, BundleManifest
from pipeline.artifacts.manifest import LETTERBOX_FILL
from pipeline.artifacts.metric import NONE, R2, plain, shown
from pipeline.backends.base import Backend

_SHIPPED = Path(__file__).with_name("shipped")


_ALL = {"selftest.py": "selftest.py", "integration/network_input.py": "network_input.py"}
_OF_CLASSES = {"integration/classify.py": "classify.py"}
_OF_OTHERS = {"integration/run.py": "run.py"}

_MEANING = {
    "segmentation": "The class of a pixel is the channel of its largest number; labels.txt names them in order.",
    "detection": "Of each level, `boxes` are distances from the middle of a cell to the left, top, right and bottom, "
    "in cells before a softplus, and `classes` are logits of a sigmoid; labels.txt names their channels in order. "
    "Suppressing boxes that overlap (NMS) is for your own code.",
    "restoration": "The output is a picture, R, G, B in [0, 1]; cut what lies outside.",
    "embedding": "The output is a vector whose direction counts: compare two images by the cosine of theirs.",
}

_UNKNOWN = "What the outputs mean, and what is made of them, is for your own code."

_COLORS = {
    "RGB": "Channels in the order R, G, B.",
    "BGR": "Channels in the order B, G, R.",
    "gray": "One channel: 0.299 R + 0.587 G + 0.114 B.",
}
_RESIZE = {
    "shorter_side_then_crop": "Resize so that it just covers {height} x {width} pixels (height x width) in its own "
    "aspect ratio, and crop these at the centre.",
    "stretch": "Resize to {height} x {width} pixels (height x width), whatever its aspect ratio.",
    "letterbox": "Resize so that all of it just fits into {height} x {width} pixels (height x width) in its own aspect "
    "ratio, and put it at the centre of such an image of level {fill} (where the bars differ, the first is a pixel "
    "narrower).",
}
_PURPOSES = {
    "bundle.json": "describes the bundle: input, output, preprocessing, lineage, sha256 of each file",
    "selftest.py": "tests the bundle on this device",
    "predict.py": "runs the network; the self-test uses it, and you can too",
    "labels.txt": "the classes, one a line, in the order of the outputs",
    "preprocessing.txt": "how an image becomes the input",
    "build_engine.sh": "builds the engine for this device's GPU, and times it",
    "golden/": "inputs from real validation images and their outputs: raw little-endian numbers",
    "integration/": "example code for this network",
}


def shipped(backend: str) -> list[Path]:
    """The files that `texts` reads for a backend."""
    parts = backends.load(backend).bundle
    own = {*parts.files.values(), *parts.files_for_pixels.values(), parts.usage}
    scripts = {*_ALL.values(), *_OF_CLASSES.values(), *_OF_OTHERS.values()}
    common = {*scripts, "README.md", "preprocessing.txt", "usage.md"}
    return [*(_SHIPPED / name for name in sorted(common)), *(parts.folder / name for name in sorted(own))]


def texts(manifest: BundleManifest, members: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, bytes]:
    """README, preprocessing, self-test and code for one network, by their paths in its bundle.

    Args:
        manifest: bundle.json, without its digests.
        members: the other files of the bundle, by path.
        facts: manifest.json's, of the form that ships.
    """
    backend = backends.load(manifest.backend)
    parts, takes_pixels = backend.bundle, manifest.input.dtype == "uint8"
    own = {**parts.files, **(parts.files_for_pixels if takes_pixels else {})}
    classifies = bool(manifest.preprocessing.classes)
    if not classifies:  # what else is in integration/ tells classes apart
        own = {path: name for path, name in own.items() if not path.startswith("integration/")}
    common = {**_ALL, **(_OF_CLASSES if classifies else _OF_OTHERS)}
    files = {path: _SHIPPED / name for path, name in common.items()}
    files |= {path: parts.folder / name for path, name in own.items()}
    names = _names(manifest, backend, facts, takes_pixels)
    made = {path: _filled(file, names) for path, file in files.items()}
    made["preprocessing.txt"] = _filled(_SHIPPED / "preprocessing.txt", names)
    suffix = parts.machine_suffix
    names |= {
        "FILES": _table([*members, *made], manifest.file, suffix),
        "USE": _filled(parts.folder / parts.usage if classifies else _SHIPPED / "usage.md", names).strip(),
    }
    made["README.md"] = _filled(_SHIPPED / "README.md", names)
    return {path: text.encode() for path, text in made.items()}


def _names(manifest: BundleManifest, backend: Backend, facts: Mapping[str, Any], takes_pixels: bool) -> dict[str, str]:
    """The value of each `@NAME@`: facts of the manifest and versions, by their names, and those listed here."""
    how, checked = manifest.preprocessing, manifest.checked
    mean, std = (", ".join(map(str, values)) for values in (how.mean, how.std))
    batch = manifest.input.shape[0]
    height, width = how.size
    letters = {"RGB": "R, G, B", "BGR": "B, G, R", "gray": "gray"}[how.color_order]
    normalize = f"Divide by 255; subtract the mean ({mean}) and divide by ({std}), of {letters}."
    order = f"planar, {batch} x {letters} x rows x columns, float32"
    if takes_pixels:
        normalize, order = "Leave the pixels as they are: mean and std are in the package.", "an image of 8-bit pixels"
    known = {name.upper(): str(value) for name, value in {**facts, **manifest.created_by}.items()}
    return (
        known
        | _of_outputs(manifest)
        | {
            "MODEL": manifest.model,
            "TARGET": manifest.target,
            "PRECISION": manifest.precision,
            "RUNTIME": backend.title,
            "NEEDS": backend.bundle.needs,
            "FILE": manifest.file,
            "STEM": Path(manifest.file).stem,
            "INPUT": manifest.input.name,
            "OUTPUT": manifest.output.name,
            "KIND": manifest.output.kind,
            "BATCH": str(batch),
            "HEIGHT": str(height),
            "WIDTH": str(width),
            "CHANNELS": str(how.channels),
            "LETTERS": letters,
            "WEIGHTS": ", ".join(str(float(weight)) for row in how.of_rgb for weight in row),
            "RESIZE": _RESIZE[how.resize].format(height=height, width=width, fill=LETTERBOX_FILL),
            "COLORS": _COLORS[how.color_order],
            "CLASSES": str(len(how.classes)),
            "MEAN": mean,
            "STD": std,
            "INTERPOLATION": how.interpolation,
            "NORMALIZE": normalize,
            "ORDER": order,
            "IMAGES": str(checked.images),
            "CHECKED_BY": checked.by,
            "DIGEST": manifest.sha256_of_file[:12],
        }
    )


def _of_outputs(manifest: BundleManifest) -> dict[str, str]:
    """What it is for, what it gives, and how good the file is, in words."""
    classes, accuracy, output = len(manifest.preprocessing.classes), manifest.checked.accuracy, manifest.output
    if not classes:
        shown = "; ".join(f"`{one.name}`, {_sizes(one.shape)}" for one in manifest.outputs)
        return {
            "WHAT": f"gives {shown} for",
            "GIVES": f"The outputs, in order, float32: {shown}.",
            "QUALITY": _quality(manifest.checked),
            "MEANING": _MEANING.get(
                manifest.task, "What the outputs mean, and what is made of them, is for your own code."
            ),
        }
    known = "not known, since the images have no labels" if accuracy is None else f"{accuracy:.2%}"
    return {
        "WHAT": f"tells {classes} classes apart in",
        "GIVES": f"The output is {_sizes(output.shape)} {output.kind}, one for each line of labels.txt, in that order.",
        "QUALITY": f"Top-1 accuracy of this file: {known}",
    }


def _quality(checked: BundledCheck) -> str:
    if checked.accuracy is not None:
        return f"{plain(checked.metric)} of this file: {shown(checked.accuracy, checked.metric)}"
    what = "R2 of its outputs to those of" if checked.metric in (R2, NONE) else "Agreement with"
    return f"{what} the float network: {checked.agreement:.2%}"


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _filled(file: Path, names: Mapping[str, str]) -> str:
    text = file.read_text()
    if file.suffix != ".py":
        for key, value in names.items():
            text = text.replace(f"@{key}@", value)
    return text


def _table(paths: list[str], network: str, machine_suffix: str) -> str:
    """A line for each file or folder at the top of a bundle, as Markdown."""
    purposes = {
        **_PURPOSES,
        network: "the network",
        f"{network}/": "the network",
    }
    if machine_suffix:
        purposes[f"{Path(network).stem}{machine_suffix}"] = "an engine, for devices of the kind that built it"
    tops = {f"{top}/" if rest else top for top, _, rest in (path.partition("/") for path in ["bundle.json", *paths])}
    return "\n".join(f"| {top} | {purposes.get(top, 'the timing cache of an earlier build')} |" for top in sorted(tops))
