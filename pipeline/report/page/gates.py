"""The gates that a network and its files passed, each with the value and what was allowed."""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.artifacts.check_result import CheckResult, GateResult
from pipeline.artifacts.metric import NONE, shown
from pipeline.artifacts.quantize_result import QuantizeResult
from pipeline.artifacts.verify_result import VerifyResult


@dataclass(frozen=True)
class Gate:
    """One gate.

    Attributes:
        step: what was compared: ``fold``, ``int8``, or the file.
        name: of the gate.
        found, allowed: in words.
        passed: None if it was not checked.
        error, tolerance: relative to the largest logit, or weight; None where the gate is not on such an error.
    """

    step: str
    name: str
    found: str
    allowed: str
    passed: bool | None
    error: float | None = None
    tolerance: float | None = None


def of_fold(proved: VerifyResult) -> list[Gate]:
    """Those of the stage `verify`, which are passed, or there would be no verify.json."""
    float32 = proved.float32
    allowed = {
        name: max(float32.tolerance, float32.slack * errors.branched) for name, errors in float32.relative_error.items()
    }
    worst = max(allowed, key=lambda name: float32.relative_error[name].fused / allowed[name], default=None)
    accuracy = proved.accuracy
    gates = [
        _error(
            "fold", "float64", max(proved.float64.max_relative_error.values(), default=0.0), proved.float64.tolerance
        ),
        _error("fold", "weights", proved.weights.max_relative_error, proved.weights.tolerance),
    ]
    if worst is not None:
        gates.append(_error("fold", "float32", float32.relative_error[worst].fused, allowed[worst]))
    ties = f", the other {len(proved.ties)} are ties" if proved.ties else ""
    gates.append(Gate("fold", "agreement", f"{proved.agreement:.2%} of {proved.images:,} images{ties}", "all", True))
    if accuracy.metric != NONE and accuracy.branched is not None:
        before, after = (shown(value, accuracy.metric) for value in (accuracy.branched, accuracy.fused))
        gates.append(Gate("fold", accuracy.metric, f"{before} to {after}", "as agreement", True))
    if proved.idempotent:
        gates.append(Gate("fold", "idempotence", "fusing again folds nothing", "nothing", True))
    return gates


def of_int8(result: QuantizeResult) -> list[Gate]:
    """That of the stage `quantize`."""
    metric = result.accuracy.metric
    before, after = shown(result.accuracy.fused, metric), shown(result.accuracy.quantized, metric)
    found = result.reason or f"{before} to {after}"
    return [Gate("int8", metric, found, "quantize.max_metric_drop", result.status == "ok")]


def of_file(label: str, result: CheckResult) -> Iterator[Gate]:
    """Those of the stage `check`.

    Args:
        label: of the target.
        result: of its files.
    """
    for form, checked in result.forms.items():
        step = f"{label}: {form}"
        yield _of_result(step, "converter", checked.converter)
        if checked.precision:
            yield _of_result(step, "precision", checked.precision)
        census = (
            f"{checked.census.get('convolution', 0)} convolutions, {checked.census.get('batch_norm', 0)} batch norms"
        )
        yield Gate(step, "census", census, "those of the program", True)
        if result.accuracy.metric != NONE:
            score = shown(checked.accuracy, result.accuracy.metric)
            yield Gate(step, result.accuracy.metric, score, "check.max_metric_drop", True)
    if result.status != "ok":
        yield Gate(label, "lost", result.reason or "", "", False)


def passed(gates: list[Gate]) -> str:
    """How many of how many, in words."""
    checked = [gate for gate in gates if gate.passed is not None]
    skipped = len(gates) - len(checked)
    text = f"{sum(gate.passed for gate in checked)} of {len(checked)}"
    return f"{text} ({skipped} not checked)" if skipped else text


def _of_result(step: str, name: str, result: GateResult) -> Gate:
    if result.not_checked:
        return Gate(step, name, f"not checked: {result.not_checked}", "", None)
    error = result.mean_relative_error if result.max_relative_error is None else result.max_relative_error
    flips = f", {len(result.flips)} ties" if result.flips else ""
    return _error(step, name, error or 0.0, result.tolerance or 0.0, flips)


def _error(step: str, name: str, error: float, tolerance: float, more: str = "") -> Gate:
    return Gate(step, name, f"{error:.1e}{more}", f"{tolerance:.1e}", error <= tolerance, error, tolerance)
