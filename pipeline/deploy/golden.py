"""Golden images of a bundle: a few validation images of different classes, and the verified program's outputs."""

from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.artifacts.check_result import CheckedForm, GateResult
from pipeline.artifacts.export_result import Manifest
from pipeline.artifacts.manifest import Preprocessing
from pipeline.backends import signatures
from pipeline.backends.base import Backend
from pipeline.data import splits
from pipeline.verification import compare
from pipeline.verification.reference import Reference, spec_of

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Golden:
    """One inference of the file: the input, and the output that it must give.

    Attributes:
        input: float32 (N, 3, H, W), little-endian; uint8 if the file takes pixels.
        output: float32 (N, classes), little-endian; of several outputs one after the other, (N, ...) each.
        labels: the true class of each image; of those without labels, what the program says; -1 without classes.
    """

    input: bytes
    output: bytes
    labels: tuple[int, ...]


def make(file: Path, written: Manifest, source: Path, split: Path, count: int, backend: Backend) -> list[Golden]:
    """Run validation images through the program that a file was exported from.

    A float program runs in float64, with the weights as the file stores them, so that the numbers are the same on any
    machine; an int8 program runs unchanged.

    Args:
        file: the exported file; it is not run.
        written: the manifest beside it.
        source: fused.pt2, or quantized.pt2 for an int8 file.
        split: artifacts/split.json.
        count: number of images; the last batch of the file is filled up with the first images.
        backend: of the file.
    """
    chosen = _chosen(splits.open_split(split), count)
    signature = signatures.read(file)
    preprocessing = written.preprocessing
    spec = replace(spec_of(written, preprocessing), precision=written.shipped_form.precision)
    reference = Reference(source, chosen, spec, signature.takes_pixels)
    if backend.stored_weights:
        reference = reference.as_stored_in(file, backend.stored_weights)
    if written.shipped == "quantized":
        images, numbers = reference.stored(backend.float_beside_int8)
    else:
        images, numbers, _ = reference.exact
    numbers = compare.probabilities(numbers) if signature.gives_probabilities else numbers
    inputs = _as_pixels(images, preprocessing) if signature.takes_pixels else images.astype("<f4")
    batch = spec.input_shape[0]
    labels = reference.labels if reference.split.is_of_classifier else [splits.UNKNOWN] * len(images)
    rows = [[place % len(images) for place in range(at, at + batch)] for at in range(0, len(images), batch)]
    return [
        Golden(
            inputs[row].tobytes(),
            b"".join(part.astype("<f4").tobytes() for part in compare.parts(numbers[row], reference.outputs)),
            tuple(int(labels[place]) for place in row),
        )
        for row in rows
    ]


def tolerance(checked: CheckedForm, precision: str) -> float:
    """The tolerance of the self-test, relative to the largest output: that of `check` on this machine.

    Args:
        checked: the result of check for the form that ships.
        precision: of the file.
    """
    held = checked.precision or GateResult()
    allowed = compare.TOLERANCE.get(precision, compare.TOLERANCE["fp16"]) if held.tolerance is None else held.tolerance
    return max(allowed, compare.SLACK * (held.loss_of_fused or 0.0))


def _chosen(split: splits.Split, count: int) -> splits.Split:
    """A split whose validation part is `count` of its images, spread over the classes."""
    if not (split.has_labels and split.is_of_classifier):
        return replace(split, parts={"train": (), "val": split.parts["val"][:count]})
    labels = split.labels or split.images.targets.tolist()
    of_class: dict[int, list[int]] = {}
    for number in split.parts["val"]:
        of_class.setdefault(labels[number], []).append(number)
    classes = sorted(of_class)
    if len(classes) > count:
        classes = [classes[place * len(classes) // count] for place in range(count)]
    in_turn = [number for rank in zip_longest(*(of_class[one] for one in classes)) for number in rank]
    numbers = [number for number in in_turn if number is not None][:count]
    parts = {"train": (), "val": numbers}
    return splits.new_split(split.name, split.root, split.classes, split.sources, split.labels, parts, split.use)


def _as_pixels(images: "np.ndarray", preprocessing: Preprocessing) -> "np.ndarray":
    import numpy as np

    mean, std = (np.array(one)[:, None, None] for one in (preprocessing.mean, preprocessing.std))
    return np.rint((images * std + mean) * 255).astype(np.uint8)
