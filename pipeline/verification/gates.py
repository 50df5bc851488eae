"""The gates on an exported file that run it; `check` lists them in order, docs/proof.md explains them."""

import math
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import backends
from pipeline.artifacts.check_result import GateResult
from pipeline.artifacts.metric import allowed_drop, shown
from pipeline.backends.worker import client
from pipeline.config.targets import WEIGHTS_ALONE, Check
from pipeline.errors import GateError
from pipeline.models import programs
from pipeline.models.accuracy import metric_of, share_right
from pipeline.verification import compare, localize
from pipeline.verification.reference import Reference

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class CheckedFile:
    """An exported file that is checked. It runs once; the gates raise a GateError if they fail.

    Attributes:
        backend: that runs the file.
        gates: the limits.
        form: of the network, ``fused`` for example.
        reference: that the file is compared with.
        gives_probabilities: whether it gives them instead of logits.
        predict: runs the file, in one process for all its sessions.
    """

    backend: str
    gates: Check
    file: Path
    form: str
    reference: Reference
    gives_probabilities: bool
    predict: client.Predict

    @cached_property
    def _numbers(self) -> "np.ndarray":
        batch = self.reference.spec.input_shape[0]
        return self.predict(self.reference.images(), batch=batch)

    @cached_property
    def _found(self) -> compare.Comparison:
        return self._compare(self._numbers, self.reference.numbers)

    @property
    def accuracy(self) -> float:
        """On the validation images; see `Reference.score`."""
        return self.reference.score(self._numbers)

    @property
    def agreement(self) -> float:
        """How alike the file and its reference are: of classes the share that is the same, or R2 without a task."""
        return self.reference.agreement(self._numbers)

    def check_network(self, branched_error: float) -> GateResult:
        """Gate: the file computes the network that it was exported from, apart from the error of its precision.

        Args:
            branched_error: error of the branched network in float32, relative to the largest logit.
        """
        if self.form == "quantized":
            return self._check_integers(self._numbers)
        return self._check_converter(self._numbers, branched_error)

    def check_precision(self, accuracy_of_fused: float) -> GateResult:
        """Gate: the error and the accuracy of the file in its own precision.

        Args:
            accuracy_of_fused: top-1 of fused.pt2.
        """
        is_int8 = self.form == "quantized"
        result = self._check_int8(self._found, self._numbers) if is_int8 else self._check_precision(self._found)
        self._check_accuracy(accuracy_of_fused)
        return result

    def _compare(self, got: "np.ndarray", want: "np.ndarray") -> compare.Comparison:
        return compare.compare(*self._comparable(got, want), self.reference.outputs)

    def _comparable(self, *numbers: "np.ndarray") -> "tuple[np.ndarray, ...]":
        return tuple(map(compare.probabilities, numbers)) if self.gives_probabilities else numbers

    def _check_converter(self, numbers: "np.ndarray", branched_error: float) -> GateResult:
        """The file in float32 on its stored weights, against the program with equally rounded ones in float64."""
        is_float32 = self.reference.spec.precision == "fp32"
        offers = backends.load(self.backend).runtime.open_exact_session is not None
        if not is_float32 and self.form != "fused":
            return GateResult(
                not_checked="an exporter folds batch norms before it rounds weights, so these are not known"
            )
        if not is_float32 and not offers:
            return GateResult(not_checked="this runtime has no float32 arithmetic for a float16 file")
        images, want, own_error = self.reference.exact
        got = numbers[: len(images)]
        if offers:
            batch = self.reference.spec.input_shape[0]
            got = self.predict(images, session="exact", batch=batch)
        if self.form == "branched":
            own_error = max(own_error, branched_error)
        found = self._compare(got, want)
        tolerance = max(compare.EXACT, compare.SLACK * own_error)
        constants: list[str] = []
        if not is_float32 and not found.relative_error <= tolerance:
            constants = ["mean and std"] * self.reference.whole_pixels
            constants += programs.rounded_constants(programs.graph_module(self.reference.program))
            if constants:
                effect = compare.SLACK * self.reference.effect_of_rounded_numbers
                tolerance = max(tolerance, compare.EXACT_BUT_FOR_CONSTANTS, effect)
        if not found.relative_error <= tolerance:
            raise GateError(
                f"{self.file}: {found} fused.pt2 with equally rounded weights, both in float32: off by "
                f"{found.relative_error:.1e} of {self._largest}, tolerance {tolerance:.0e}. The file does not hold "
                f"the network that it was made from: {self._where(found.image, exact=True, tolerance=tolerance)}. "
                "Export it again; if it fails again, the exporter is at fault for that layer."
            )
        rounded = tuple(constants) or None
        return GateResult(tolerance, found.relative_error, images=len(images), rounded_constants=rounded)

    def _check_precision(self, found: compare.Comparison) -> GateResult:
        """The file in its own arithmetic, against fused.pt2 in float32, with the weights of a file that compresses."""
        if self.form == "branched" and self.reference.spec.precision in WEIGHTS_ALONE:
            return GateResult(
                not_checked="its weights are compressed, and are those of no other file; its accuracy is held"
            )
        precision, error = self.reference.spec.precision, found.relative_error
        tolerance = self._tolerance
        result = GateResult(tolerance, error)
        if error <= tolerance:
            return result
        # a tolerance that the user set is not widened
        allowance = precision != "fp32" and self.gates.tolerance is None
        by_itself = self.reference.loss_in_half if allowance else 0.0
        weights = " with the weights of the file" if self.reference.weights else ""
        if not error <= compare.SLACK * by_itself:
            moves = f"moves by {by_itself:.1e}" if math.isfinite(by_itself) else "overflows"
            program = f", and fused.pt2 itself {moves} in half precision" if by_itself else ""
            layer = _sentence(self._where(found.image, exact=False, tolerance=tolerance))
            raise GateError(
                f"{self.file}: {found} fused.pt2{weights}, off by {error:.1e} of {self._largest}; tolerance for "
                f"{precision} is {tolerance:.0e}{program}. {layer} "
                f"Try `precision: fp32` in target.yaml; if that holds, the network overflows or loses too much in "
                f"{precision}."
            )
        print(
            f"warning: {self.file.name} is up to {error:.1e} of {self._largest} from fused.pt2, which itself moves "
            f"by {by_itself:.1e} in half precision: batch norms of huge gain, named in fuse.json, do that. Its "
            "accuracy is held below.",
            file=sys.stderr,
        )
        return replace(result, loss_of_fused=by_itself)

    def _check_integers(self, numbers: "np.ndarray") -> GateResult:
        """The file, with what is not int8 in float32, against quantized.pt2 with numbers as the file stores them."""
        beside = backends.load(self.backend).float_beside_int8
        images, want = self.reference.stored(beside)
        got = numbers[: len(images)]
        if beside != "fp32":
            batch = self.reference.spec.input_shape[0]
            got = self.predict(images, session="exact", batch=batch)
        error = compare.mean_error(*self._comparable(got, want), self.reference.outputs)
        found = self._compare(got, want)
        allowed, tolerance = (
            max(compare.EXACT_INT8, compare.SLACK * self.reference.last_digits(beside)[0]),
            self._tolerance,
        )
        if not error <= allowed:
            raise GateError(
                f"{self.file}: {found} quantized.pt2, and on average an image is off by {error:.1e} of "
                f"{self._largest}, tolerance {allowed:.0e}, which is more than a last digit here and there. The "
                f"file does not hold the integers that it was made from: "
                f"{self._where(found.image, exact=True, tolerance=tolerance)}. Export it again; if it fails again, the "
                "exporter is at fault for that layer."
            )
        return GateResult(allowed, mean_relative_error=error, images=len(images))

    def _check_int8(self, found: compare.Comparison, numbers: "np.ndarray") -> GateResult:
        """The file in its own arithmetic, against quantized.pt2: its logits, and its classes, ties apart."""
        tolerance, error = self._tolerance, found.relative_error
        if not error <= tolerance:
            raise GateError(
                f"{self.file}: {found} quantized.pt2, off by {error:.1e} of {self._largest}; tolerance for int8 is "
                f"{tolerance:.0e}. {_sentence(self._where(found.image, exact=False, tolerance=tolerance))} Export it "
                "again; if it fails again, the runtime is at fault for that layer, or the float beside its integers."
            )
        by_class = self.reference.split.is_of_classifier
        flips = compare.flips(numbers, self.reference.numbers) if by_class else []
        if flips and not flips[0].margin <= tolerance:
            worst = flips[0]
            raise GateError(
                f"{self.file}: image {worst.image} is of class {worst.got}, but by quantized.pt2 of class {worst.want}"
                f", whose logit is larger by {worst.margin:.1e} of the largest of all, and {tolerance:.0e} is a tie. "
                f"{_sentence(self._where(worst.image, exact=False, tolerance=tolerance))}"
            )
        return GateResult(tolerance, error, flips=tuple(flips))

    @property
    def _largest(self) -> str:
        """What errors are relative to, in words."""
        return "the largest logit" if self.reference.split.is_of_classifier else "the largest number of that output"

    @property
    def _tolerance(self) -> float:
        """Tolerance of the file's own arithmetic; without one of the user's, an int8 network may need more."""
        precision = self.reference.spec.precision
        if self.gates.tolerance or self.form != "quantized":
            return self.gates.tolerance or compare.TOLERANCE["fp16" if precision in WEIGHTS_ALONE else precision]
        beside = backends.load(self.backend).float_beside_int8
        return max(compare.TOLERANCE["int8"], compare.SLACK * self.reference.last_digits(beside)[1]) * (
            compare.SLACK if beside == "fp16" else 1
        )

    def _check_accuracy(self, fused: float) -> None:
        reached, metric = self.accuracy, metric_of(self.reference.split)
        allowed = allowed_drop(self.gates.max_metric_drop, metric, fused)
        if not fused - reached <= allowed:
            raise GateError(
                f"{self.file}: it {share_right(reached, metric)}, and the fused network has "
                f"{shown(fused, metric)}; allowed is a drop of {shown(allowed, metric)} (check.max_metric_drop). "
                f"{self._remedy}"
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
        """The first layer whose output differs from the program's, for the image that showed it, in words."""
        if self.form == "branched":
            return "its layers are not those of fused.pt2, so none can be named"
        backend, image = self.backend, self.reference.image(index)
        if backends.load(backend).runtime.outputs_by_layer is None:
            program = self.reference.program
            return localize.locate(backend, self.file, program, self.reference.spec, image, tolerance)
        want = self.reference.outputs_by_layer(image, exact)
        got = client.outputs_by_layer(backend, self.file, image, exact=exact)
        departure = compare.first_departure(got, want, tolerance)
        if departure is None:
            return f"taken one by one, no layer departs by more than {tolerance:.0e}"
        module = programs.graph_module(self.reference.program)
        before = departure.before and programs.title(module, departure.before)
        return str(replace(departure, layer=programs.title(module, departure.layer), before=before))


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
