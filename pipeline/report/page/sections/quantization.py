"""INT8: what the repair brought back, how sensitive each layer is, and what was forecast."""

from pipeline.artifacts.metric import NONE, number, plain, shown, unit_of
from pipeline.artifacts.quantize_result import QuantizeResult
from pipeline.report.figures import NONE as NO_FIGURE
from pipeline.report.page import charts
from pipeline.report.page.built import Built, Model
from pipeline.report.page.content import Chart, Section, Table
from pipeline.report.page.sections.layers import MOST_ROWS

_TEXT = (
    "The metric of the int8 program after each step of the repair, in the order of the steps; some steps are tried for "
    "comparison alone, or taken back. A layer's sensitivity is the error of the logits when it alone is in int8: mean "
    "squared, as a share of their variance. It is measured where the repair needs it, and forecast in any case."
)


def section(built: Built) -> Section | None:
    """Two charts for each model that was quantized, and the forecast in words; None where none was."""
    found, notes = [], []
    for name, model in built.models.items():
        made = [_repair(name, model.quantize) if model.quantize else None, _sensitivity(name, model)]
        found += [chart for chart in made if chart]
        notes += _notes(name, model.quantize) if model.quantize else []
        notes += _forecast(name, model)
    if not found and not notes:
        return None
    return Section("int8", "INT8", [_TEXT] if found else [], charts=found, notes=notes)


def _repair(name: str, result: QuantizeResult) -> Chart | None:
    metric, scale = result.accuracy.metric, 100 if unit_of(result.accuracy.metric) == "%" else 1
    if metric == NONE:
        return None
    points = [("float", "the fused network", result.accuracy.fused, "float", "")]
    points += [
        (f"{place}. {step.name}", step.how, step.accuracy, "kept" if step.kept else "not kept", f"{step.error:.1e}")
        for place, step in enumerate(result.steps, 1)
    ]
    points.append(("int8 program", "what ships", result.accuracy.quantized, "result", ""))
    rows = [
        {"name": label, "series": series, "value": score * scale, "text": f"{shown(score, metric)}; {how}"}
        for label, how, score, series, _ in points
    ]
    cells = [
        {
            "step": label,
            "how": how,
            f"{plain(metric)} [{unit_of(metric)}]": number(score, metric),
            "error of the logits": error or NO_FIGURE,
            "status": series,
        }
        for label, how, score, series, error in points
    ]
    caption = f"What each step of the repair brought back of {name} [{unit_of(metric)}]"
    title = f"{plain(metric)} on the validation images [{unit_of(metric)}]"
    return Chart(caption, charts.dots(rows, title, "Step", zero=False), Table(caption, cells, ("how", "status")))


def _sensitivity(name: str, model: Model) -> Chart | None:
    """What was measured, and what was forecast from the float network; the worst layers alone where there are many."""
    forecast = {one.name: one.logit_error.both for one in model.fuse.forecast.layers if one.logit_error}
    measured = model.quantize.sensitivity if model.quantize else {}
    known = {"measured": measured, "forecast": {layer: error for layer, error in forecast.items() if error}}
    errors = {layer: max(one.get(layer, 0.0) for one in known.values()) for one in known.values() for layer in one}
    layers = sorted((layer for layer, error in errors.items() if error > 0), key=lambda layer: -errors[layer])
    if not layers:
        return None
    kept = layers[:MOST_ROWS]
    rows = [
        {"name": layer, "series": series, "value": one[layer], "text": f"{one[layer]:.2e}"}
        for layer in kept
        for series, one in known.items()
        if one.get(layer, 0.0) > 0
    ]
    in_float = {one.layer for one in model.quantize.in_float.layers} if model.quantize else set()
    cells = [
        {
            "layer": layer,
            **{series: f"{one[layer]:.2e}" if layer in one else NO_FIGURE for series, one in known.items()},
            "ships in": "float" if layer in in_float else "int8" if model.quantize else NO_FIGURE,
        }
        for layer in kept
    ]
    cut = f", the {MOST_ROWS} largest of {len(layers)}" if len(layers) > MOST_ROWS else ""
    caption = f"Sensitivity of each layer of {name} to int8{cut} [share of the logits' variance]"
    title = "Error of the logits [share of their variance], logarithmic"
    spec = charts.dots(rows, title, "Error", logarithmic=True)
    return Chart(caption, spec, Table(caption, cells, ("ships in",)))


def _notes(name: str, result: QuantizeResult) -> list[str]:
    calibrated = result.calibration
    notes = [f"{name}: calibrated with {calibrated.images:,} images of the part {calibrated.part}."]
    notes += [f"{name}: {one.layer} stayed in float: {one.reason}." for one in result.in_float.layers]
    if operations := result.in_float.operations:
        listed = ", ".join(f"{count} {kind}" for kind, count in operations.items())
        notes.append(f"{name}: operations that the quantizer leaves in float: {listed}.")
    return notes


def _forecast(name: str, model: Model) -> list[str]:
    told = model.fuse.forecast
    if told.reason:
        return [f"{name}: what int8 does was not forecast: {told.reason}."]
    return [f"{name}, forecast: {risk.message}" for risk in told.risks[:MOST_ROWS]]
