"""`repnets check`: whether two exported files compute the same, on this machine."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import backends
from pipeline.artifacts.manifest import (
    ColorOrder,
    ExportSpec,
    ImageSize,
    Preprocessing,
    channels_of,
    image_size_of,
    write_json,
)
from pipeline.backends import signatures
from pipeline.backends.worker import client
from pipeline.cli import exported_files
from pipeline.cli.exported_files import Exported
from pipeline.errors import GateError, InputError, StageError
from pipeline.models import program_file, programs
from pipeline.report.text import aligned
from pipeline.verification import compare, localize

if TYPE_CHECKING:
    import numpy as np

HELP = f"""\
Run two exported files on the same images on this machine, and compare the largest difference of their logits with a
tolerance. FILE is the file to check, --against the file that is taken as correct.

{exported_files.FILES.format(coreml="an evaluator of saved ML programs, on any system")}
Without --images or --split the input is random normal numbers. Images are preprocessed as the manifest.json beside
one of the files says. The default tolerance is that of the lower of the two precisions, which manifest.json also names.
If the files differ by more, the first layer whose output differs is named, where both runtimes give the outputs of
layers.

Exit code 0: they agree. 1: they differ, or a runtime is missing or failed. 2: a file cannot be used.

examples:
  repnets check targets/executorch/toy/fused.pte --against artifacts/toy/fused.pt2
  repnets check targets/tensorrt/toy/fused.onnx --against targets/executorch/toy/fused.pte --split artifacts/split.json
  repnets check mine.onnx --against fused.pt2 --images photos --tolerance 1e-3
"""

_COUNTED = ("convolution", "batch_norm", "join", "total")


@dataclass(frozen=True)
class _Side:
    """A file, the session it is opened by, the words for that, and its operations by type."""

    file: Exported
    session: str
    runtime: str
    census: dict[str, int]


@dataclass(frozen=True)
class _Finding:
    """What the comparison of two sides found; `departure` is None where it passed."""

    sides: tuple[_Side, _Side]
    fed: exported_files.Images
    logits: compare.Comparison
    tolerance: float
    why: str
    departure: compare.Departure | str | None


def check(
    path: Path,
    against: Path,
    *,
    images: Path | None = None,
    split: Path | None = None,
    image_size: ImageSize | None = None,
    tolerance: float | None = None,
    exact: bool = False,
    document: Path | None = None,
) -> None:
    """Compare what two files give for the same images, print the figures, and hold them to a tolerance.

    Args:
        path: the exported file in question.
        against: the file that is right.
        images, split: a folder of images, or a split.json with its validation images; default: random numbers.
        image_size: height and width, pixels, where both files take any.
        tolerance: largest difference, of the largest logit of `against`; default: by the lower precision.
        exact: both in float32 arithmetic on the weights as they are stored.
        document: where to write the figures as JSON, also where the gate fails.

    Raises:
        GateError: they differ by more, with the first layer that departs where both can tell.
        InputError: a file cannot be used; the two do not take the same input or give the same classes.
        StageError: a file's runtime is not on this machine, or failed.
    """
    files = [exported_files.open_file(one) for one in (path, against)]
    shape = exported_files.common_shape(files, image_size)
    fed = exported_files.images(files, shape, images, split)
    sides = (_side(files[0], exact), _side(files[1], exact))
    allowed, why = (tolerance, "as given") if tolerance is not None else _tolerance(files, exact)
    as_probabilities = any(file.gives_probabilities for file in files)
    got, want = (_logits(side, fed, shape[0], as_probabilities) for side in sides)
    outputs = sides[1].file.outputs if sum(map(compare.width, sides[1].file.outputs)) == want.shape[1] else ()
    logits = compare.compare(got, want, outputs)
    passed = logits.relative_error <= allowed
    departure = None if passed else _departure(sides, fed.one(logits.image), shape, exact, allowed)
    found = _Finding(sides, fed, logits, allowed, why, departure)
    print(_shown(found))
    if document:
        write_json(document, _document(found))
    if not passed:
        raise GateError(
            f"{path}: {logits} {against}, {logits.relative_error:.1e} of {_largest(sides)}; tolerance is "
            f"{allowed:.0e} ({why}); {departure}."
        )


def _side(file: Exported, exact: bool) -> _Side:
    backend = backends.load(file.backend)
    is_silent = signatures.read(file.path) is None  # its own runtime alone can open it: an engine
    session, runtime = ("own", backend.title) if is_silent else ("check", backend.checked_by)
    if is_silent and (missing := backend.unavailable()):
        raise StageError(f"{file.path} cannot be compared here: {missing.reason} {missing.remedy}")
    if exact and backend.runtime.open_exact_session:
        return _Side(file, "exact", f"{runtime}, in float32", backend.census(file.path))
    if exact and file.precision != "fp32":
        raise InputError(
            f"{runtime} computes {file.path} in its own {file.precision} arithmetic and no other. Leave out --exact, "
            "or export the file in fp32."
        )
    census = {} if session == "own" else backend.census(file.path)
    return _Side(file, session, runtime, census)


def _tolerance(files: list[Exported], exact: bool) -> tuple[float, str]:
    if exact:
        return compare.EXACT, "both in float32"
    known = [file.precision for file in files if file.precision in compare.TOLERANCE]
    if len(known) < len(files):
        raise InputError(f"there is no tolerance for {files[0].precision} and {files[1].precision}. Give --tolerance.")
    lowest = max(known, key=compare.TOLERANCE.__getitem__)
    without = [file.path.name for file in files if file.manifest is None and file.path.suffix != ".pt2"]
    taken = f"; no manifest.json tells that of {' or '.join(without)}" if without else ""
    return compare.TOLERANCE[lowest], f"for {lowest}{taken}"


def _logits(side: _Side, fed: exported_files.Images, batch: int, as_probabilities: bool) -> "np.ndarray":
    logits = client.predict(side.file.backend, side.file.path, fed.pieces(), session=side.session, batch=batch)
    return compare.probabilities(logits) if as_probabilities else logits


def _departure(
    sides: tuple[_Side, _Side], image: "np.ndarray", shape: tuple[int, ...], exact: bool, tolerance: float
) -> compare.Departure | str:
    """The first layer that differs; or in words what else is known of where."""
    import numpy as np

    fed = np.ascontiguousarray(np.broadcast_to(image, shape))
    silent = [side for side in sides if not _tells_layers(side)]
    try:
        if not silent:
            return _first_of_both(sides, fed, exact, tolerance)
        file, against = (side.file for side in sides)
        if silent == [sides[0]] and against.path.suffix == ".pt2" and backends.load(file.backend).export:
            return _located(file, against, fed, tolerance)
    except (StageError, InputError) as error:
        return f"it is not known which layer departs: {str(error).rstrip('.')}"
    return f"{silent[0].runtime} does not tell what each layer of {silent[0].file.path.name} gives"


def _tells_layers(side: _Side) -> bool:
    return side.session != "own" and backends.load(side.file.backend).runtime.outputs_by_layer is not None


def _first_of_both(
    sides: tuple[_Side, _Side], image: "np.ndarray", exact: bool, tolerance: float
) -> compare.Departure | str:
    got, want = (client.outputs_by_layer(side.file.backend, side.file.path, image, exact=exact) for side in sides)
    common = sum(name in got for name in want)
    nowhere = (
        f"none of the {common} layers that both name departs by itself" if common else "no layer bears one name in both"
    )
    return compare.first_departure(got, want, tolerance) or nowhere


def _located(file: Exported, against: Exported, image: "np.ndarray", tolerance: float) -> str:
    """Where a file departs from a program that it may have been exported from; the exporter tells."""
    program, _ = program_file.read(against.path)
    static = programs.static(programs.as_module(program), image.shape)
    order: ColorOrder = "gray" if image.shape[1] == 1 else "RGB"
    channels = channels_of(order)  # all of it is outside of the file, where layers are silent
    unused = Preprocessing(image_size_of(image.shape), (0.0,) * channels, (1.0,) * channels, (), color_order=order)
    spec = ExportSpec(file.precision, image.shape, unused)
    return localize.locate(file.backend, file.path, static, spec, image, tolerance)


def _classify(sides: tuple[_Side, _Side]) -> bool:
    return any(side.file.classes for side in sides)


def _largest(sides: tuple[_Side, _Side]) -> str:
    """What errors are relative to, in words."""
    return "the largest logit" if _classify(sides) else "the largest number of that output"


def _shown(found: _Finding) -> str:
    sides, logits = found.sides, found.logits
    probabilities = any(side.file.gives_probabilities for side in sides)
    rows = [
        ("", *(str(side.file.path) for side in sides)),
        ("run by", *(side.runtime for side in sides)),
        ("precision", *(side.file.precision for side in sides)),
        *((name.replace("_", " "), *(_count(side.census.get(name)) for side in sides)) for name in _COUNTED),
    ]
    error = f"{logits.relative_error:.2e} of {_largest(sides)}, {abs(logits.got - logits.want):.2e} absolute"
    facts = [
        ("fed", found.fed.described),
        *((("compared", "probabilities, which are all that one of them gives"),) if probabilities else ()),
        ("largest error", error),
        ("there", f"{logits.where}: {logits.got:.6g}, against {logits.want:.6g}"),
        *((("same class", f"{logits.agreement:.2%} of {logits.images} images"),) if _classify(sides) else ()),
        ("tolerance", f"{found.tolerance:.0e}, {found.why}"),
        ("verdict", "pass" if found.departure is None else "fail"),
    ]
    return f"{aligned(rows)}\n\n{aligned(facts)}"


def _document(found: _Finding) -> dict[str, Any]:
    file, against = (
        {"file": str(side.file.path), "run_by": side.runtime, "precision": side.file.precision, "census": side.census}
        for side in found.sides
    )
    logits = found.logits
    return {
        "verdict": "pass" if found.departure is None else "fail",
        "file": file,
        "against": against,
        "fed": found.fed.described,
        "images": logits.images,
        "max_relative_error": _number(logits.relative_error),
        "max_absolute_error": _number(abs(logits.got - logits.want)),
        "image": logits.image,
        "logit": logits.logit,
        "got": _number(logits.got),
        "want": _number(logits.want),
        "agreement": logits.agreement,
        "tolerance": found.tolerance,
        "departure": None if found.departure is None else str(found.departure),
    }


def _count(number: int | None) -> str:
    return "-" if number is None else str(number)


def _number(value: float) -> float | None:
    """None for what JSON has no number for: NaN and infinity."""
    return value if math.isfinite(value) else None
