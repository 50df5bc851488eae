"""What `bench` and `race` print of what they measured."""

from collections.abc import Sequence

from pipeline.artifacts.bench_result import BenchResult, Reference, ReferenceResult, Run, Speedup
from pipeline.artifacts.profile_result import ProfileResult
from pipeline.benchmark import profile as profiles


def in_words(name: str, figures: BenchResult | Reference | ReferenceResult) -> list[str]:
    """A line for each number of threads.

    Args:
        name: what was timed.
        figures: what was measured.
    """
    lines = []
    for run in figures.runs:
        threads = f"{run.threads} thread{'s' * (run.threads > 1)}"
        at = f", {threads}" if len(figures.runs) > 1 else ""
        times = [f"{form} {entry.latency_ms.p50:.3f} ms" for form, entry in run.forms.items()]
        lines.append(f"{name}{at}: {', '.join(times)}{_gained(*run.forms, speedup=run.speedup)}")
    if drawn := figures.power:
        each = [f"{form} {entry.energy_mj:.3f} mJ" for form, entry in drawn.forms.items()]
        lines.append(f"  energy of an inference above idle ({drawn.idle_mw} mW): {', '.join(each)}")
    if lasting := figures.sustained:
        lines.append(
            f"  over {lasting.seconds:g} s, {lasting.form} went from {lasting.windows[0].p50_ms:.3f} ms to "
            f"{lasting.slowdown:.2f} times that at worst"
        )
    return lines


def warnings(runs: Sequence[Run]) -> list[str]:
    """What the conditions of some runs warn of, each once, a line each."""
    found = {run.conditions.warning for run in runs}
    return [f"  warning: {warning}" for warning in sorted(filter(None, found))]


def dearest(profile: ProfileResult) -> list[str]:
    """The operations of a profile that take the longest, a line each."""
    if profile.status != "ok":
        return []
    head = f"  of {profile.inference_ms:.3f} ms, all operations take {profile.sum_ms:.3f} ms, the dearest:"
    return [head] + [
        f"  {profiles.milliseconds(one):>9} ms {one['share']:6.1%}  {one['layer'] or '-'}  ({one['name']})"
        for one in profiles.slowest(profile.operations)
    ]


def _gained(shipped: str, baseline: str | None = None, *_others: str, speedup: Speedup | None) -> str:
    if speedup is None:
        return ""
    interval = ""
    if speedup.low is not None:
        interval = f" (95 % interval {speedup.low:.2f} to {speedup.high:.2f})"
    return f"; {shipped} is {speedup.median:.2f} times as fast as {baseline}{interval}"
