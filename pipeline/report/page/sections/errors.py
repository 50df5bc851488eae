"""Errors of every step on one scale."""

from pipeline.report.page import charts, gates
from pipeline.report.page.built import Built
from pipeline.report.page.content import Chart, Section, Table

_TEXT = (
    "From the network as trained to each file: the largest error of a step, and what it may be. All are relative to "
    "the largest logit, those of weights to the layer's largest weight. An error of zero is drawn at the left end. "
    "int8 itself is judged by the metric (see INT8); a file in int8 is compared with the int8 program."
)


def section(built: Built) -> Section:
    """A chart for each model."""
    found = []
    for name, model in built.models.items():
        passed = gates.of_fold(model.verify)
        passed += [gate for one in built.of(name) for gate in gates.of_file(one.label, one.check)]
        measured = [gate for gate in passed if gate.error is not None]
        rows = [
            {"name": f"{gate.step}, {gate.name}", "series": series, "value": value, "text": f"{value:.2e}"}
            for gate in measured
            for series, value in (("found", gate.error), ("allowed", gate.tolerance))
        ]
        cells = [
            {"step": gate.step, "gate": gate.name, "error": f"{gate.error:.2e}", "allowed": f"{gate.tolerance:.2e}"}
            for gate in measured
        ]
        caption = f"Errors of {name}, step by step, relative to the largest value [no unit]"
        spec = charts.pairs(rows, "Relative error, logarithmic", logarithmic=True)
        found.append(Chart(caption, spec, Table(caption, cells, ("gate",))))
    return Section("errors", "Errors, step by step", [_TEXT], charts=found)
