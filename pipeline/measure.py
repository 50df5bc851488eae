"""How latencies are taken and what is said of them: pure functions on clocks and samples.

Two forms of a network are timed in turn, block by block (A B A B), so that a machine that warms up, throttles
or gets busy slows both alike. Each round gives one ratio; the speed-up is the median of these paired ratios,
and its interval is bootstrapped over the rounds. No sample is thrown away: a slow run is part of the answer.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

BLOCK = 5
RESAMPLES = 2000
_CHUNK = 4_000_000


@dataclass(frozen=True)
class Timing:
    """What was timed.

    Attributes:
        samples_ms: per form, float64 (rounds, BLOCK): the runs of each block in the order taken.
        warmup: per form, how many runs came before and were not timed.
    """

    samples_ms: "Mapping[str, np.ndarray]"
    warmup: Mapping[str, int]


def time_in_turn(
    forms: Mapping[str, Callable[[], object]],
    *,
    warmup_seconds: float,
    min_runs: int,
    max_seconds: float,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Timing:
    """Time several forms of a network against each other.

    Each form is warmed up alone. Then come rounds: of every form one run that is not timed, since it finds
    the caches as another form left them, and BLOCK runs that are.

    Args:
        forms: what runs each form once, by the form's name, in the order of the rounds.
        warmup_seconds: of each form, before the first round; at least one run.
        min_runs: timed runs of each form, whatever the time; rounded up to whole blocks.
        max_seconds: no round starts after this much time, once there are `min_runs`.
        clock: nanoseconds, monotonic.

    Raises:
        ValueError: no form, or no run asked for.
    """
    import numpy as np

    if not forms or min_runs < 1:
        raise ValueError("nothing to time: give at least one form and one run")
    warmup = {name: _warm_up(run, warmup_seconds, clock) for name, run in forms.items()}
    taken: dict[str, list[list[float]]] = {name: [] for name in forms}
    begin = clock()
    rounds = 0
    while rounds * BLOCK < min_runs or clock() - begin < max_seconds * 1e9:
        for name, run in forms.items():
            run()
            taken[name].append([_time_ms(run, clock) for _ in range(BLOCK)])
        rounds += 1
    return Timing({name: np.asarray(blocks) for name, blocks in taken.items()}, warmup)


def summary(samples_ms: "np.ndarray", warmup: int) -> dict[str, float | int]:
    """Describe latencies: n, warmup, and in ms min, mean, std (of the sample), p50, p90 and p99.

    Args:
        samples_ms: timed runs, of any shape.
        warmup: untimed runs before them.

    Raises:
        ValueError: there is no sample, or one is not a finite number.
    """
    import numpy as np

    samples = np.asarray(samples_ms, dtype=np.float64).ravel()
    if not samples.size or not np.isfinite(samples).all():
        raise ValueError("latencies need at least one sample, and all of them finite")
    p50, p90, p99 = np.percentile(samples, [50, 90, 99])
    figures = {
        "min": samples.min(),
        "mean": samples.mean(),
        "std": samples.std(ddof=1) if samples.size > 1 else 0.0,
        "p50": p50,
        "p90": p90,
        "p99": p99,
    }
    return {"n": samples.size, "warmup": warmup} | {name: round(float(value), 6) for name, value in figures.items()}


def speedup(before_ms: "np.ndarray", after_ms: "np.ndarray", seed: int = 0) -> dict[str, float | int | str]:
    """How many times as fast `after` is as `before`, from blocks that were timed in turn.

    The ratio of a round is median(before's block) / median(after's block); the figure is the median of all
    rounds, and `low` to `high` its 95 % interval by the percentile bootstrap over the rounds (Efron 1979).

    Args:
        before_ms, after_ms: (rounds, runs) of equal shape; row i of both was taken in the same round.
        seed: of the resampling; the same samples give the same interval.

    Returns:
        median, low, high, n (rounds) and method, in words.

    Raises:
        ValueError: the shapes differ, or there is no round.
    """
    import numpy as np

    before, after = np.asarray(before_ms, dtype=np.float64), np.asarray(after_ms, dtype=np.float64)
    if before.shape != after.shape or before.ndim != 2 or not before.size:
        raise ValueError(f"paired blocks have equal shapes (rounds, runs), got {before.shape} and {after.shape}")
    ratios = np.median(before, axis=1) / np.median(after, axis=1)
    low, high = np.percentile(_resampled_medians(ratios, seed), [2.5, 97.5])
    rounds, runs = before.shape
    return {
        "median": round(float(np.median(ratios)), 6),
        "low": round(float(low), 6),
        "high": round(float(high), 6),
        "n": rounds,
        "method": f"median of {rounds} paired ratios of block medians, blocks of {runs} runs taken in turn; "
        f"95 % percentile bootstrap, {RESAMPLES} resamples, seed {seed}",
    }


def _resampled_medians(values: "np.ndarray", seed: int) -> "np.ndarray":
    import numpy as np

    random = np.random.default_rng(seed)
    rows = max(1, min(RESAMPLES, _CHUNK // values.size))
    starts = range(0, RESAMPLES, rows)
    drawn = (random.integers(values.size, size=(min(rows, RESAMPLES - start), values.size)) for start in starts)
    return np.concatenate([np.median(values[picks], axis=1) for picks in drawn])


def _warm_up(run: Callable[[], object], seconds: float, clock: Callable[[], int]) -> int:
    begin, runs = clock(), 0
    while not runs or clock() - begin < seconds * 1e9:
        run()
        runs += 1
    return runs


def _time_ms(run: Callable[[], object], clock: Callable[[], int]) -> float:
    begin = clock()
    run()
    return (clock() - begin) / 1e6
