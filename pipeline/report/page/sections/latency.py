"""The distribution of the latencies of every file, and of what stands in for runtimes that are not here."""

from collections.abc import Iterator

from pipeline.artifacts.bench_result import BenchResult, Latency, Run
from pipeline.report import figures
from pipeline.report.page import charts
from pipeline.report.page.built import Built
from pipeline.report.page.content import Chart, Section, Table

_TEXT = (
    "A thick mark is the median, the box reaches from there to the latency that 90 % of the runs keep, the line from "
    "the fastest run to what 99 % keep. Slow runs are included. Files whose colour says stand-in were measured with "
    "another runtime on this machine's CPU, because the target's own is not here: these are not figures of the target."
)


def section(built: Built) -> Section | None:
    """A chart for each model; None where nothing was measured."""
    found = []
    for model in built.models:
        rows = _rows([result for result in built.results if result.model == model])
        if rows:
            caption = f"Latencies of {model} at the batch size of its target [ms]"
            found.append(
                Chart(
                    caption, charts.latencies(rows), Table(caption, [_cells(row) for row in rows], ("measured with",))
                )
            )
    text = [_TEXT, "How it is measured: docs/benchmarks.md. On which machine, and what else it did: see Conditions."]
    return Section("latency", "Latencies", text, charts=found) if found else None


def _rows(results: list[BenchResult]) -> list[dict]:
    """A row for each file, number of threads and runtime; a measurement that several targets share has one row."""
    found: dict[str, dict] = {}
    seen: list[Latency] = []
    for name, runtime, run in _runs(results):
        for form, entry in run.forms.items():
            if entry.latency_ms and entry.latency_ms not in seen:
                seen.append(entry.latency_ms)
                threads = f", {run.threads} threads" if run.threads > 1 else ""
                label = f"{name} {form}{threads}"
                found.setdefault(label, {"name": label, "runtime": runtime, **_shown(entry.latency_ms)})
    return list(found.values())


def _runs(results: list[BenchResult]) -> Iterator[tuple[str, str, Run]]:
    for result in results:
        if result.status == "ok":
            yield from ((result.target, "the target's runtime", run) for run in result.runs)
    for result in results:
        if stand_in := result.reference:
            name = f"{stand_in.runtime} {stand_in.precision}"
            yield from ((name, f"stand-in, {stand_in.runtime}", run) for run in stand_in.runs)


def _shown(latency: Latency) -> dict:
    values = {"minimum": latency.min, "p50": latency.p50, "p90": latency.p90, "p99": latency.p99}
    texts = {f"{name}_text": f"{figures.milliseconds(value)} ms" for name, value in values.items()}
    interval = latency.interval.get("p50")
    if interval:
        texts["p50_text"] += f" ({figures.milliseconds(interval[0])} to {figures.milliseconds(interval[1])})"
    return {**values, **texts, "text": f"{latency.n} in {latency.launches} launches"}


def _cells(row: dict) -> dict[str, str]:
    titles = {"minimum": "fastest", "p50": "median (95 % interval)", "p90": "90 %", "p99": "99 %"}
    cells = {title: row[f"{name}_text"].replace(" ms", "") for name, title in titles.items()}
    return {"file": row["name"], "measured with": row["runtime"], **cells, "runs": row["text"]}
