"""Percentiles of latencies and speed-ups, each with a 95 % interval. Pure functions on samples.

Consecutive runs are not independent, and neither are the runs of one process, which keeps its place in memory for its
whole life. So intervals are over launches and not over runs: each launch gives one value of the figure, and Student's t
over their logarithms gives the interval (Georges, Buytaert and Eeckhout, OOPSLA 2007; Kalibera and Jones, ISMM 2013).
With one launch, its consecutive parts are used instead (batch means). A bootstrap over three to five launches would
give intervals that are a third to two thirds too narrow.

Samples are, for each launch, float64 (rounds, runs) in ms: a row is a block of consecutive runs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Samples = Sequence[np.ndarray]

PERCENTILES = (50, 90, 99)
_PARTS = 10  # of a single launch
_MIN_BEYOND = 5  # runs slower than a percentile; with fewer, nothing bounds it from above
_FENCE = 3.0  # times the interquartile range above the third quartile: Tukey's "far out"
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # 97.5 % of Student's t, by degrees of freedom


def summary(launches: "Samples") -> dict[str, Any]:
    """Describe the latencies of one form.

    Args:
        launches: the samples.

    Returns:
        ``n`` runs in ``launches`` launches; in ms ``min``, ``mean``, ``std`` of the sample, ``p50``, ``p90``, ``p99``
        over all runs; ``interval``: [low, high] of each percentile, None if fewer than five runs were slower than the
        percentile or nothing was repeated; ``outliers``: ``count`` and ``share`` of the runs above ``above_ms``, the
        third quartile plus three interquartile ranges. Outliers are included in every other figure.

    Raises:
        ValueError: there is no sample, or one is not a finite number.
    """
    import numpy as np

    samples = _all(launches)
    quartiles = np.percentile(samples, [25, 75])
    fence = quartiles[1] + _FENCE * (quartiles[1] - quartiles[0])
    found = {f"p{q}": percentile(launches, q) for q in PERCENTILES}
    slow = int((samples > fence).sum())
    return {
        "n": samples.size,
        "launches": len(launches),
        "min": _rounded(samples.min()),
        "mean": _rounded(samples.mean()),
        "std": _rounded(samples.std(ddof=1)) if samples.size > 1 else 0.0,
        **{name: one["value"] for name, one in found.items()},
        "interval": {name: None if one["low"] is None else [one["low"], one["high"]] for name, one in found.items()},
        "outliers": {"count": slow, "share": _rounded(slow / samples.size), "above_ms": _rounded(fence)},
    }


def percentile(launches: "Samples", q: float) -> dict[str, float | None]:
    """A percentile of all runs, with its 95 % interval.

    Args:
        launches: the samples.
        q: which, 0 to 100.

    Returns:
        ``value``, ``low`` and ``high``, ms; the last two within what was seen, or None where they cannot be told.

    Raises:
        ValueError: there is no sample, or one is not a finite number.
    """
    import numpy as np

    samples = _all(launches)
    value = float(np.percentile(samples, q))
    low, high = _interval(launches, lambda part: float(np.percentile(part, q)), value)
    if low is None or samples.size * (100 - q) / 100 < _MIN_BEYOND:
        return {"value": _rounded(value), "low": None, "high": None}
    return {
        "value": _rounded(value),
        "low": _rounded(max(low, samples.min())),
        "high": _rounded(min(high, samples.max())),
    }


def speedup(before: "Samples", after: "Samples") -> dict[str, Any]:
    """How many times as fast `after` is as `before`, from blocks that were timed in turn.

    The ratio of a round is median(before's block) / median(after's block); the figure is the median of all rounds.

    Args:
        before, after: the samples, as many launches and rounds of both; row i of a launch was taken in the same round.

    Returns:
        ``median``; ``low`` and ``high``, its 95 % interval, None after a single round; ``n`` rounds; ``by_launch``,
        the median of each launch; ``method``, in words.

    Raises:
        ValueError: the rounds differ, or there is none.
    """
    import numpy as np

    shapes = [[np.shape(launch) for launch in launches] for launches in (before, after)]
    are_blocks = all(len(shape) == 2 and 0 not in shape for of_form in shapes for shape in of_form)
    if not are_blocks or not shapes[0] or [one[0] for one in shapes[0]] != [one[0] for one in shapes[1]]:
        raise ValueError(f"paired blocks are (rounds, runs), as many rounds in each launch of both, got {shapes}")
    ratios = [np.median(one, axis=1) / np.median(other, axis=1) for one, other in zip(before, after, strict=True)]
    value = float(np.median(np.concatenate(ratios)))
    low, high = _interval(ratios, lambda part: float(np.median(part)), value)
    over = f"{len(ratios)} launches" if len(ratios) > 1 else f"{len(_parts(ratios[0]))} consecutive parts of one launch"
    return {
        "median": _rounded(value),
        "low": _rounded(low),
        "high": _rounded(high),
        "n": sum(map(len, ratios)),
        "by_launch": [_rounded(float(np.median(launch))) for launch in ratios],
        "method": "median of the paired ratios of block medians, blocks of "
        f"{shapes[0][0][1]} runs taken in turn; 95 % interval by Student's t over the medians of {over}",
    }


def relative_width(figure: Mapping[str, Any]) -> float:
    """Width of an interval as a share of its figure, of `percentile` or of `speedup`; infinite without one."""
    if figure["low"] is None:
        return math.inf
    return (figure["high"] - figure["low"]) / figure.get("value", figure.get("median"))


def _interval(
    launches: "Samples", statistic: "Callable[[np.ndarray], float]", figure: float
) -> tuple[float | None, float | None]:
    """Student's t over the logarithms of each launch's value; over the parts of the launch if there is only one.

    Few launches can agree by chance. So their deviation is taken to be at least what the parts of each launch predict;
    and the interval is widened, if necessary, to contain the figure over all runs.
    """
    within = [[statistic(part) for part in _parts(launch)] for launch in launches]
    values = [statistic(launch) for launch in launches] if len(launches) > 1 else within[0]
    if len(values) < 2 or min(values) <= 0:
        return None, None
    deviation, count = _deviation(values), len(values)
    if len(launches) > 1:
        squares = [_deviation(parts) ** 2 / len(parts) for parts in within if len(parts) > 1 and min(parts) > 0]
        deviation = max(deviation, math.sqrt(math.fsum(squares) / max(1, len(squares))))
    mean = math.fsum(map(math.log, values)) / count
    half = _T[min(count - 1, len(_T)) - 1] * deviation / math.sqrt(count)
    return min(figure, math.exp(mean - half)), max(figure, math.exp(mean + half))


def _deviation(values: Sequence[float]) -> float:
    """Standard deviation of the logarithms."""
    logs = [math.log(value) for value in values]
    mean = math.fsum(logs) / len(logs)
    return math.sqrt(math.fsum((log - mean) ** 2 for log in logs) / (len(logs) - 1))


def _parts(launch: "np.ndarray") -> "list[np.ndarray]":
    import numpy as np

    return np.array_split(launch, min(_PARTS, len(launch)))


def _all(launches: "Samples") -> "np.ndarray":
    import numpy as np

    samples = np.concatenate([np.ravel(launch) for launch in launches]) if len(launches) else np.empty(0)
    if not samples.size or not np.isfinite(samples).all():
        raise ValueError("latencies need at least one sample, and all of them finite")
    return samples


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 6)
