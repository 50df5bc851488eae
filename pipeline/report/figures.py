"""How a figure of bench.json or profile.json is written, the same in every table and line."""

from pipeline.artifacts.bench_result import Figures, Run
from pipeline.artifacts.metric import Metric, number
from pipeline.artifacts.profile_result import Operation

NONE = "-"
"""What stands for a figure that there is not."""


def percent(share: float | None) -> str:
    """A share of one, in percent."""
    return NONE if share is None else f"{share * 100:.2f}"


def score(value: float | None, metric: Metric) -> str:
    """A value of a metric, in its unit."""
    return NONE if value is None else number(value, metric)


def milliseconds(value: float | None) -> str:
    """A latency, ms."""
    return NONE if value is None else f"{value:.3f}"


def megabytes(size_bytes: float) -> str:
    """The size of a file, in units of a million bytes."""
    return f"{size_bytes / 1e6:.2f}"


def median_latency(run: Run | None, form: str) -> str:
    """The median latency of one form in a run, ms."""
    figures: Figures | None = run and run.forms.get(form)
    return milliseconds(figures.latency_ms.p50 if figures else None)


def speedup(run: Run | None) -> str:
    """The speed-up of a run, with its 95 % interval where there is one."""
    gained = run and run.speedup
    if not gained:
        return NONE
    interval = f" ({gained.low:.2f}-{gained.high:.2f})" if gained.low is not None else ""
    return f"{gained.median:.2f}x{interval}"


def operation_time(operation: Operation) -> str:
    """The time of one operation, ms; with a ~ where the runtime only estimates it."""
    return f"{'~' * bool(operation.estimated)}{milliseconds(operation.ms)}"
