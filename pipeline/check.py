"""Gate: the exported file computes what the program it came from computes, and is as accurate.

The file itself runs, in a runtime that reads it on this machine. Held, in this order:

1. each file is the one that the manifest describes, and the manifest's preprocessing is the network's;
2. a census of its operations: as many convolutions as the fused network has, no batch norm and no branch left, and as
   many layers in int8 as the program has;
3. the converter is exact: in float32, with the weights rounded as the file stores them, the file gives what the program
   gives, to 1e-5 of the largest logit, or within twice what float32 itself costs the network; to 5e-4 where the file
   rounds numbers other than weights, as the square root of 2 in a GELU that is written by its formula. Weights that
   are compressed are read from the file, and each is held against the network's own by what its scheme may change;
4. its precision: in its own arithmetic its logits are those of fused.pt2 in float32, with the weights of the file where
   it compresses them, on the whole validation set, within the tolerance of the precision; or, where the network by
   itself loses more in half precision, as dead channels make it, within twice what fused.pt2 loses in it;
5. its top-1 accuracy against that of the fused network, within `max_accuracy_drop`.

A file in int8 has the same integers as quantized.pt2, and is held against that: in 3, with what is not int8 in float32,
an image may on average be off by half a last digit, since runtimes round the middle between two integers their own way;
in 4, no logit by more than the tolerance, and no class differs but where two logits are that close, which are listed.

Where 3 or 4 fails, the message names the first layer whose output departs. check.json says by which runtime all this
was found, and what could not be.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import backends, bisection, comparison, programs, references, stage, store, worker
from pipeline.backends import pytorch, signatures
from pipeline.config import WEIGHTS_ALONE, Check, CheckSettings
from pipeline.errors import GateError
from pipeline.manifest import Preprocessing, read_json, write_json

if TYPE_CHECKING:
    import numpy as np

_SLACK = 2  # times what rounding costs the network by itself: runtimes round in other places than torch
_SHOWN_FIELDS = ("mean", "std", "color_order", "interpolation", "classes")


def run(
    settings: CheckSettings,
    *,
    manifest: Path,
    files: list[Path],
    fused: Path,
    verify: Path,
    split: Path,
    output: Path,
    quantized: Path | None = None,
) -> None:
    """Check the exported files of one network for one target.

    Args:
        settings: the backend, and the gates.
        manifest: the manifest.json that export wrote.
        files: the exported files beside it.
        fused: artifacts/<model>/fused.pt2.
        verify: artifacts/<model>/verify.json, for the preprocessing, and the accuracies of branched and fused.
        split: artifacts/split.json; its validation images are the input.
        output: where check.json goes.
        quantized: artifacts/<model>/quantized.pt2, where the target is of int8.

    Raises:
        GateError: a file departs from its program, lost accuracy, is not fused, or not in int8; names the file, the
            image, the figures, the tolerance and the layer.
    """
    backend = backends.load(settings.backend)
    store.cached(
        "check",
        settings=settings.model_dump(mode="json"),
        inputs={"manifest": manifest, "fused": fused, "quantized": quantized, "verify": verify, "split": split}
        | {file.name: file for file in files},
        outputs={"check": output},
        code=("pipeline.check", "pipeline.worker", backend.__name__),
        packages=("torch", "torchvision", "scikit-learn", *backend.PACKAGES),
        build=lambda places, _: write_json(
            places["check"], _check(settings, manifest, files, fused, quantized, verify, split)
        ),
    )


def _check(
    settings: CheckSettings,
    manifest: Path,
    files: list[Path],
    fused: Path,
    quantized: Path | None,
    verify: Path,
    split: Path,
) -> dict[str, Any]:
    backend = backends.load(settings.backend)
    written, proved = read_json(manifest), read_json(verify)
    places = {file.name: file for file in files}
    for entry in written["forms"].values():
        _hold_content(entry["files"], places)
    _hold_preprocessing(manifest, written["preprocessing"], proved["preprocessing"])
    preprocessing = Preprocessing.from_dict(proved["preprocessing"])
    signature = _signature(written, places)
    sources = {"fused": fused} | ({"quantized": quantized} if quantized else {})
    held_against = _references(written, preprocessing, sources, split, signature.takes_pixels)
    forms: dict[str, Any] = {}
    accuracy: dict[str, float | None] = {**proved["accuracy"], "file": None}
    shipped = next(iter(written["forms"]))
    for form, entry in written["forms"].items():
        reference = held_against[form]
        if inspect := getattr(backend, "inspect", None):
            inspect([places[name] for name in entry["files"]], entry["facts"], reference.spec)
        file = places[next(iter(entry["files"]))]
        forms[form] = {"census": backend.census(file)}
        if form != "branched":
            _hold_census(file, forms[form]["census"], reference)
            if read := getattr(backend, "stored_weights", None):
                reference = reference.as_stored_in(file, read)
        if backend.CHECKED_BY is None:
            continue
        gates = settings.check
        if reference.spec.precision != written["precision"]:
            gates = gates.model_copy(update={"tolerance": None})  # the user's is for what ships
        checked = _Checked(settings.backend, gates, file, form, reference, signature.gives_probabilities)
        forms[form] |= checked.hold(proved["float32"], held_against["fused"].accuracy)
        if form == shipped:
            accuracy["file"] = forms[form]["accuracy"]
    return {
        "status": "ok",
        "checked_by": backend.CHECKED_BY,
        "not_checked": None if backend.CHECKED_BY else backend.unavailable().reason,
        "images": len(held_against[shipped].labels),
        "accuracy": accuracy,
        "forms": forms,
    }


def _references(
    written: dict[str, Any], preprocessing: Preprocessing, sources: dict[str, Path], split: Path, whole_pixels: bool
) -> dict[str, references.Reference]:
    """What each form is held against, in its precision; and the fused network in any case, for its accuracy."""
    spec = references.spec_of(written, preprocessing)
    precisions = {"fused": "fp32"} | {form: entry["precision"] for form, entry in written["forms"].items()}
    made: dict[tuple[Path, str], references.Reference] = {}
    for form, precision in precisions.items():
        key = sources.get(form, sources["fused"]), precision
        if key not in made:
            made[key] = references.Reference(key[0], split, replace(spec, precision=precision), whole_pixels)
    return {form: made[sources.get(form, sources["fused"]), precision] for form, precision in precisions.items()}


def _signature(written: dict[str, Any], places: dict[str, Path]) -> signatures.Signature:
    """What the file that ships takes and gives; the baseline is exported alike."""
    first = next(iter(written["forms"].values()))
    return signatures.read(places[next(iter(first["files"]))])


def _hold_content(entries: dict[str, Any], places: dict[str, Path]) -> None:
    for name, facts in entries.items():
        if store.digest(places[name]) != facts["sha256"]:
            raise GateError(f"{places[name]} is not the file that its manifest describes; export it again.")


def _hold_preprocessing(manifest: Path, written: dict[str, Any], proved: dict[str, Any]) -> None:
    """The manifest tells the app how to feed the network: as it was fed when it was trained and verified."""
    for field in _SHOWN_FIELDS:
        if written[field] != proved[field]:
            raise GateError(
                f"{manifest}: `{field}` of the preprocessing is {_short(written[field])}, but the network was trained "
                f"and verified with {_short(proved[field])}. An app that feeds it so gets wrong answers; export again."
            )


def _hold_census(file: Path, census: dict[str, int], reference: references.Reference) -> None:
    wanted = pytorch.count(reference.program)
    if census["batch_norm"] or census["convolution"] != wanted["convolution"]:
        raise GateError(
            f"{file}: holds {census['convolution']} convolutions and {census['batch_norm']} batch norms, but the fused "
            f"network has {wanted['convolution']} and none. The exporter undid the fold, or was given the branched "
            "network."
        )
    if census["join"] > wanted["join"]:
        raise GateError(
            f"{file}: adds branches at {census['join']} places, but the fused network at {wanted['join']}. A branch "
            "was left unfused, or the exporter undid the fold."
        )
    if census["int8"] != wanted["int8"]:
        raise GateError(
            f"{file}: computes {census['int8']} convolutions and linear layers in int8, but the program it was made of "
            f"{wanted['int8']}. The exporter left the others in float, or lost their scales; export it again, and if "
            "that fails, leave out the exporter's version that manifest.json names."
        )


@dataclass(frozen=True)
class _Checked:
    """A file under check; `hold` runs it and raises where a gate fails."""

    backend: str
    gates: Check
    file: Path
    form: str
    reference: references.Reference
    gives_probabilities: bool

    def hold(self, float32: dict[str, Any], accuracy_of_fused: float) -> dict[str, Any]:
        batch = self.reference.spec.input_shape[0]
        want = self.reference.logits
        logits = worker.predict(self.backend, self.file, self.reference.images(), batch=batch)
        found = self._compare(logits, want)
        if self.form == "quantized":
            held = {"converter": self._hold_integers(logits), "precision": self._hold_int8(found, logits)}
        else:
            held = {"converter": self._hold_converter(logits, float32), "precision": self._hold_precision(found)}
        accuracy = float((logits.argmax(1) == self.reference.labels).mean())
        self._hold_accuracy(accuracy, accuracy_of_fused)
        return held | {"agreement": found.agreement, "accuracy": accuracy}

    def _compare(self, got: "np.ndarray", want: "np.ndarray") -> comparison.Comparison:
        return comparison.compare(*self._comparable(got, want))

    def _comparable(self, *logits: "np.ndarray") -> "tuple[np.ndarray, ...]":
        return tuple(map(comparison.probabilities, logits)) if self.gives_probabilities else logits

    def _hold_converter(self, logits: "np.ndarray", float32: dict[str, Any]) -> dict[str, Any]:
        """The file in float32 on its stored weights, against the program with equally rounded ones in float64."""
        is_float32 = self.reference.spec.precision == "fp32"
        offers = hasattr(backends.load(self.backend), "open_exact_session")
        if not is_float32 and self.form != "fused":
            return {"not_checked": "an exporter folds batch norms before it rounds weights, so these are not known"}
        if not is_float32 and not offers:
            return {"not_checked": "this runtime has no float32 arithmetic for a float16 file"}
        images, want, own_error = self.reference.exact
        got = logits[: len(images)]
        if offers:
            batch = self.reference.spec.input_shape[0]
            got = worker.predict(self.backend, self.file, images, session="exact", batch=batch)
        if self.form == "branched":
            own_error = max(own_error, *(row["branched"] for row in float32["relative_error"].values()))
        found = self._compare(got, want)
        tolerance = max(comparison.EXACT, _SLACK * own_error)
        constants: list[str] = []
        if not is_float32 and not found.relative_error <= tolerance:
            constants = ["mean and std"] * self.reference.whole_pixels
            constants += programs.rounded_constants(self.reference.program.module(check_guards=False))
            tolerance = max(tolerance, comparison.EXACT_BUT_FOR_CONSTANTS) if constants else tolerance
        if not found.relative_error <= tolerance:
            raise GateError(
                f"{self.file}: {found} fused.pt2 with equally rounded weights, both in float32: off by "
                f"{found.relative_error:.1e} of the largest logit, tolerance {tolerance:.0e}. The file does not hold "
                f"the network that it was made from: {self._where(found.image, exact=True, tolerance=tolerance)}. "
                "Export it again; if it fails again, the exporter is at fault for that layer."
            )
        held = {"tolerance": tolerance, "max_relative_error": found.relative_error, "images": len(images)}
        return held | ({"rounded_constants": constants} if constants else {})

    def _hold_precision(self, found: comparison.Comparison) -> dict[str, Any]:
        """The file in its own arithmetic, against fused.pt2 in float32, with the weights of a file that compresses."""
        if self.form == "branched" and self.reference.spec.precision in WEIGHTS_ALONE:
            return {"not_checked": "its weights are compressed, and are those of no other file; its accuracy is held"}
        precision, error = self.reference.spec.precision, found.relative_error
        tolerance = self._tolerance
        held: dict[str, Any] = {"tolerance": tolerance, "max_relative_error": error}
        if error <= tolerance:
            return held
        # a tolerance that the user set is held as it is
        allowance = precision != "fp32" and self.gates.tolerance is None
        by_itself = self.reference.loss_in_half if allowance else 0.0
        weights = " with the weights of the file" if self.reference.weights else ""
        if not error <= _SLACK * by_itself:
            moves = f"moves by {by_itself:.1e}" if math.isfinite(by_itself) else "overflows"
            program = f", and fused.pt2 itself {moves} in half precision" if by_itself else ""
            layer = _sentence(self._where(found.image, exact=False, tolerance=tolerance))
            raise GateError(
                f"{self.file}: {found} fused.pt2{weights}, off by {error:.1e} of the largest logit; tolerance for "
                f"{precision} is {tolerance:.0e}{program}. {layer} "
                f"Try `precision: fp32` in target.yaml; if that holds, the network overflows or loses too much in "
                f"{precision}."
            )
        print(
            f"warning: {self.file.name} is up to {error:.1e} of the largest logit from fused.pt2, which itself moves "
            f"by {by_itself:.1e} in half precision: batch norms of huge gain, named in fuse.json, do that. Its "
            "accuracy is held below.",
            file=sys.stderr,
        )
        return held | {"loss_of_fused": by_itself}

    def _hold_integers(self, logits: "np.ndarray") -> dict[str, Any]:
        """The file, with what is not int8 in float32, against quantized.pt2 with numbers as the file stores them."""
        beside = getattr(backends.load(self.backend), "FLOAT_BESIDE_INT8", "fp32")
        images, want = self.reference.stored(beside)
        got = logits[: len(images)]
        if beside != "fp32":
            batch = self.reference.spec.input_shape[0]
            got = worker.predict(self.backend, self.file, images, session="exact", batch=batch)
        error, found = comparison.mean_error(*self._comparable(got, want)), self._compare(got, want)
        allowed, tolerance = max(comparison.EXACT_INT8, _SLACK * self.reference.last_digits[0]), self._tolerance
        if not error <= allowed:
            raise GateError(
                f"{self.file}: {found} quantized.pt2, and on average an image is off by {error:.1e} of the largest "
                f"logit, tolerance {allowed:.0e}, which is more than a last digit here and there. The "
                f"file does not hold the integers that it was made from: "
                f"{self._where(found.image, exact=True, tolerance=tolerance)}. Export it again; if it fails again, the "
                "exporter is at fault for that layer."
            )
        return {"tolerance": allowed, "mean_relative_error": error, "images": len(images)}

    def _hold_int8(self, found: comparison.Comparison, logits: "np.ndarray") -> dict[str, Any]:
        """The file in its own arithmetic, against quantized.pt2: its logits, and its classes, ties apart."""
        tolerance, error = self._tolerance, found.relative_error
        if not error <= tolerance:
            raise GateError(
                f"{self.file}: {found} quantized.pt2, off by {error:.1e} of the largest logit; tolerance for int8 is "
                f"{tolerance:.0e}. {_sentence(self._where(found.image, exact=False, tolerance=tolerance))} Export it "
                "again; if it fails again, the runtime is at fault for that layer, or the float beside its integers."
            )
        flips = comparison.flips(logits, self.reference.logits)
        if flips and not flips[0].margin <= tolerance:
            worst = flips[0]
            raise GateError(
                f"{self.file}: image {worst.image} is of class {worst.got}, but by quantized.pt2 of class {worst.want}"
                f", whose logit is larger by {worst.margin:.1e} of the largest of all, and {tolerance:.0e} is a tie. "
                f"{_sentence(self._where(worst.image, exact=False, tolerance=tolerance))}"
            )
        return {"tolerance": tolerance, "max_relative_error": error, "flips": [asdict(flip) for flip in flips]}

    @property
    def _tolerance(self) -> float:
        """Of the file's own arithmetic; where the user sets none, an int8 network's last digits may need more."""
        precision = self.reference.spec.precision
        if self.gates.tolerance or self.form != "quantized":
            return self.gates.tolerance or comparison.TOLERANCE["fp16" if precision in WEIGHTS_ALONE else precision]
        in_half = getattr(backends.load(self.backend), "FLOAT_BESIDE_INT8", "fp32") == "fp16"
        return max(comparison.TOLERANCE["int8"], _SLACK * self.reference.last_digits[1]) * (_SLACK if in_half else 1)

    def _hold_accuracy(self, share: float, fused: float) -> None:
        allowed = self.gates.max_accuracy_drop
        if fused - share > allowed:
            raise GateError(
                f"{self.file}: top-1 is {share:.2%} on the validation set, that of the fused network {fused:.2%}; "
                f"allowed is a drop of {allowed:.2%} (check.max_accuracy_drop). {self._remedy}"
            )

    @property
    def _remedy(self) -> str:
        if self.form != "quantized":
            return "Try a higher precision."
        return (
            "quantize.json says by which layers int8 loses it: keep more of them in float "
            "(`quantize.max_float_layers`), take ranges from more images (`quantize.calibration_images`), train in "
            "int8 (`quantize.qat_epochs`), or take a network that is made for int8 (arch qarepvgg_a0, say)."
        )

    def _where(self, index: int, *, exact: bool, tolerance: float) -> str:
        """In words: the first layer at which the file departs from its program, for the image that showed it."""
        if self.form == "branched":
            return "its layers are not those of fused.pt2, so none can be named"
        backend, image = self.backend, self.reference.image(index)
        if not hasattr(backends.load(backend), "outputs_by_layer"):
            program = self.reference.program
            return bisection.locate(backend, self.file, program, self.reference.spec, image, tolerance)
        want = self.reference.outputs_by_layer(image, exact)
        got = worker.outputs_by_layer(backend, self.file, image, exact=exact)
        departure = comparison.first_departure(got, want, tolerance)
        if departure is None:
            return f"taken one by one, no layer departs by more than {tolerance:.0e}"
        module = self.reference.program.module(check_guards=False)
        before = departure.before and programs.title(module, departure.before)
        return str(replace(departure, layer=programs.title(module, departure.layer), before=before))


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of this stage."""
    return stage.main(run, argv)


if __name__ == "__main__":
    sys.exit(main())
