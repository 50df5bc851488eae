"""The tables of report.md, in Markdown with aligned columns."""

from collections.abc import Mapping, Sequence

from pipeline.artifacts.bench_result import BenchResult
from pipeline.artifacts.fuse_result import Forecast
from pipeline.artifacts.metric import unit_of
from pipeline.artifacts.profile_result import ProfileResult
from pipeline.report import figures
from pipeline.report.figures import NONE
from pipeline.report.text import table

SLOWEST_LAYERS = 10
_LEFT = ("model", "target", "status", "stands in for", "layer", "worst layer", "operation", "precision", "on the front")


def benchmarks(results: Sequence[BenchResult], failed: Sequence[tuple[str, str]] = ()) -> str:
    """The main table: a row for each number of threads; one row where nothing was measured.

    Args:
        results: of what was built.
        failed: model and target of what was not; a row each, without figures.
    """
    rows = [row for result in results for row in benchmark_rows(result)]
    names = list(rows[0]) if rows else ["model", "target", "status", "threads"]
    for model, target in failed:
        told = {"model": model, "target": target, "status": "failed"}
        rows.append({name: told.get(name, NONE) for name in names})
    if not rows:
        return ""
    return table(_LEFT, without_single_threads(sorted(rows, key=lambda row: (row["model"], row["target"]))))


def references(results: Sequence[BenchResult]) -> str:
    """The figures that stand in for a runtime which is not here.

    Args:
        results: their references are of one runtime and one precision, so they ship the same form.
    """
    forms = dict.fromkeys(form for result in results for form in reversed(result.forms))
    rows = [
        {
            "model": result.model,
            "stands in for": result.target,
            "threads": str(run.threads),
            **{f"{form} ms": figures.median_latency(run, form) for form in forms},
            "speed-up": figures.speedup(run),
        }
        for result in results
        for run in result.reference.runs
    ]
    return table(_LEFT, without_single_threads(rows))


def candidates(results: Sequence[BenchResult]) -> str:
    """What the targets of `precision: auto` chose from; at least one of the results is of such a target."""
    rows = []
    for result in results:
        for one in result.tried or ():
            is_chosen = one.precision == result.chosen
            rows.append(
                {
                    "model": result.model,
                    "target": result.target,
                    "precision": one.precision,
                    "status": f"chosen by {result.chosen_by}" if is_chosen else one.status,
                    f"file {unit_of(result.accuracy.metric)}": figures.score(one.accuracy, result.accuracy.metric),
                    "file ms": figures.milliseconds(one.p50_ms),
                    "file MB": figures.megabytes(one.size_bytes),
                    "on the front": "yes" if one.pareto else NONE,
                }
            )
    return table(_LEFT, rows)


def slowest_layers(profiles: Sequence[ProfileResult]) -> str:
    """The slowest operations of each model and target; every profile is of status ``ok``."""
    rows = [
        {
            "model": profile.model,
            "target": profile.target,
            "layer": one.layer or NONE,
            "operation": one.name,
            "ms": figures.operation_time(one),
            "share %": figures.percent(one.share),
        }
        for profile in profiles
        for one in profile.slowest(SLOWEST_LAYERS)
    ]
    return table(_LEFT, rows)


def int8_forecasts(forecasts: Mapping[str, Forecast]) -> str:
    """What int8 is expected to add to the logits of each model; every forecast has a figure."""
    rows = []
    for model, forecast in forecasts.items():
        worst = max(forecast.layers, key=lambda layer: layer.logit_error.both)
        rows.append(
            {
                "model": model,
                "all %": _share_of_deviation(forecast.logit_error),
                "worst layer": worst.name,
                "worst %": _share_of_deviation(worst.logit_error.both),
                "weight dB": _decibels(worst.weight.snr_db),
                "input dB": _decibels(worst.input.snr_db),
            }
        )
    return table(_LEFT, rows)


def benchmark_rows(result: BenchResult) -> list[dict[str, str]]:
    """The cells of one result by the names of their columns: a row for each number of threads, or one row."""
    accuracy, metric = result.accuracy, result.accuracy.metric
    unit = unit_of(metric)
    return [
        {
            "model": result.model,
            "target": result.target,
            "status": "ok, busy" if run and run.conditions.busy else result.status,
            "threads": str(run.threads) if run else NONE,
            "file MB": figures.megabytes(result.forms[result.shipped].size_bytes),
            **{
                f"{name} {unit}": figures.score(getattr(accuracy, name), metric)
                for name in ("branched", "fused", "file")
            },
            "file ms": figures.median_latency(run, result.shipped),
            "speed-up": figures.speedup(run),
        }
        for run in result.runs or [None]
    ]


def without_single_threads(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The rows, without the column `threads` where every measurement is on one thread."""
    if {row["threads"] for row in rows} <= {"1", NONE}:
        return [{name: cell for name, cell in row.items() if name != "threads"} for row in rows]
    return rows


def _share_of_deviation(logit_error: float) -> str:
    """A mean square error over the logits' variance, as a percentage of their standard deviation."""
    return f"{logit_error**0.5 * 100:.1f}" if logit_error < 1 else "all"


def _decibels(value: float | None) -> str:
    return NONE if value is None else f"{value:.0f}"
