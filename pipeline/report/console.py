"""What the stages `reference`, `bench` and `race` print of what they measured."""

from collections.abc import Sequence

from pipeline.artifacts.bench_result import BenchResult, Reference, ReferenceResult, Run, Speedup, Tried
from pipeline.artifacts.metric import Metric, shown
from pipeline.artifacts.profile_result import ProfileResult
from pipeline.report import figures as written
from pipeline.report.figures import NONE


def reference(name: str, result: ReferenceResult) -> str:
    """What `reference` prints.

    Args:
        name: of the runtime and precision that were measured.
        result: the figures.
    """
    return "\n".join(_measured(name, result) + _warnings(result.runs))


def bench(result: BenchResult, profile: ProfileResult) -> str:
    """What `bench` prints: the latencies and the speed-up, or why there are none; and the slowest layers."""
    name = f"{result.model} on {result.target}"
    if result.status == "ok":
        lines = _measured(name, result)
    else:
        lines = [f"{name}: {result.status}: {result.reason}", f"  to get a figure: {result.remedy}"]
    if stand_in := result.reference:
        lines += _measured(f"  reference, {stand_in.runtime} {stand_in.precision} here", stand_in)
    return "\n".join(lines + _warnings((stand_in or result).runs) + _slowest_layers(profile))


def race(result: BenchResult, profile: ProfileResult) -> str:
    """What `race` prints: the candidates, and the latencies of those that passed their gates."""
    name = f"{result.model} on {result.target}"
    lines = [f"{name}: {result.chosen} of {len(result.tried)} candidates, chosen by {result.chosen_by}"]
    if result.status != "ok":
        lines += [f"  nothing was timed: {result.reason}", f"  to choose by latency: {result.remedy}"]
    lines += [f"  {_candidate(one, result.accuracy.metric)}" for one in result.tried]
    lines += [f"  {line}" for line in _measured(name, result)]
    return "\n".join(lines + _warnings(result.runs) + _slowest_layers(profile))


def _measured(name: str, figures: BenchResult | Reference | ReferenceResult) -> list[str]:
    """A line for each number of threads; then power and sustained latency, where they were measured."""
    lines = []
    for run in figures.runs:
        threads = f", {run.threads} thread{'s' * (run.threads > 1)}" if len(figures.runs) > 1 else ""
        times = ", ".join(f"{form} {written.median_latency(run, form)} ms" for form in run.forms)
        lines.append(f"{name}{threads}: {times}{_speedup(*run.forms, speedup=run.speedup)}")
    if power := figures.power:
        each = ", ".join(f"{form} {entry.energy_mj:.3f} mJ" for form, entry in power.forms.items())
        lines.append(f"  energy of an inference above idle ({power.idle_mw} mW): {each}")
    if sustained := figures.sustained:
        lines.append(
            f"  over {sustained.seconds:g} s, {sustained.form} went from "
            f"{written.milliseconds(sustained.windows[0].p50_ms)} ms to {sustained.slowdown:.2f} times that at worst"
        )
    return lines


def _speedup(shipped: str, baseline: str | None = None, *_others: str, speedup: Speedup | None) -> str:
    if speedup is None:
        return ""
    interval = ""
    if speedup.low is not None:
        interval = f" (95 % interval {speedup.low:.2f} to {speedup.high:.2f})"
    return f"; {shipped} is {speedup.median:.2f} times as fast as {baseline}{interval}"


def _warnings(runs: Sequence[Run]) -> list[str]:
    """The warnings in the conditions of some runs, each once."""
    found = {run.conditions.warning for run in runs}
    return [f"  warning: {warning}" for warning in sorted(filter(None, found))]


def _slowest_layers(profile: ProfileResult) -> list[str]:
    if profile.status != "ok":
        return []
    head = (
        f"  of {written.milliseconds(profile.inference_ms)} ms, all operations take "
        f"{written.milliseconds(profile.sum_ms)} ms; the slowest:"
    )
    return [head] + [
        f"  {written.operation_time(one):>9} ms {one.share:6.1%}  {one.layer or NONE}  ({one.name})"
        for one in profile.slowest()
    ]


def _candidate(tried: Tried, metric: Metric) -> str:
    accuracy = "accuracy unknown" if tried.accuracy is None else shown(tried.accuracy, metric)
    latency = "" if tried.p50_ms is None else f", {written.milliseconds(tried.p50_ms)} ms"
    end = f"; lost: {tried.reason}" if tried.reason else "; on the Pareto front" if tried.pareto else ""
    return f"{tried.precision}: {accuracy}{latency}, {written.megabytes(tried.size_bytes)} MB{end}"
