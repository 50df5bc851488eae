"""Interleaved timing: blocks of runs of several forms in turn, in several launches, until the interval is narrow.

Several forms of a network are timed in turn (A B A B), so that a machine that warms up, throttles or gets busy slows
all of them alike. A form is a function that runs a block and returns its latencies; a process or a device may be behind
it. All forms are started afresh several times, because a process keeps its place in memory and its cores for its whole
life, and what does not vary within a launch cannot be seen in one. No run is discarded. `statistics` evaluates the
samples.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.benchmark.statistics import percentile, relative_width, speedup

if TYPE_CHECKING:
    import numpy as np

BLOCK = 5
_RECENT = 2  # blocks whose median is compared with that of as many blocks before
_FALL = 0.01  # decrease of the median, as a share, from which on the latency still falls
_PATIENCE = 10  # times the minimum warm-up, after which the warm-up ends in any case

Block = Callable[[], Sequence[float]]
"""Runs a form a few times untimed, then BLOCK times, and returns the ms of the timed runs."""

Launch = Callable[[], AbstractContextManager[Mapping[str, Block]]]
"""Starts all forms afresh, and gives the `Block` of each by its name, in the order of the rounds."""


@dataclass(frozen=True)
class Until:
    """When a measurement stops.

    Attributes:
        warmup_seconds: least warm-up of each form in each launch; it goes on until the latency is steady.
        min_runs: least timed runs of each form, however long they take; rounded up to whole blocks in each launch.
        max_seconds: for the timed runs of all forms and launches together, once there are `min_runs`.
        target_width: of the 95 % interval of the speed-up, as a share of the speed-up; no launch is added once the
            interval is narrower. With one form, of the interval of p50; with more than two, of the widest interval of
            a speed-up over the first form.
        min_launches, max_launches: how often the forms are started afresh.
    """

    warmup_seconds: float = 0.2
    min_runs: int = 50
    max_seconds: float = 3.0
    target_width: float = 0.02
    min_launches: int = 3
    max_launches: int = 5


@dataclass(frozen=True)
class WarmUp:
    """The warm-up of a form in one launch.

    Attributes:
        runs: number of runs, in blocks.
        seconds: duration.
        steady: whether the latencies had stopped falling at the end.
    """

    runs: int
    seconds: float
    steady: bool


@dataclass(frozen=True)
class Timing:
    """The samples of a measurement.

    Attributes:
        samples_ms: by form, for each launch float64 (rounds, runs), the runs of each block in order. Row i of a launch
            was measured in the same round for every form.
        warmup: by form, one for each launch.
        stopped_by: ``width``: the interval was narrower than `Until.target_width`; ``limit``: the launches or the time
            ran out before.
    """

    samples_ms: "Mapping[str, Sequence[np.ndarray]]"
    warmup: Mapping[str, Sequence[WarmUp]]
    stopped_by: str


def time_in_turn(launch: Launch, until: Until, *, clock: Callable[[], int] = time.perf_counter_ns) -> Timing:
    """Time several forms of a network against each other.

    In every launch each form is warmed up alone. Then come rounds of one block of every form, for an equal part of
    the time in each launch.

    Args:
        launch: starts the forms; see `in_this_process` for functions of this process.
        until: when to stop.
        clock: nanoseconds, monotonic.

    Raises:
        ValueError: there is no form, or `until` asks for no run or no launch.
    """
    import numpy as np

    if until.min_runs < 1 or not 1 <= until.min_launches <= until.max_launches:
        raise ValueError(f"nothing to time: at least one run and one launch, got {until}")
    samples: dict[str, list[np.ndarray]] = {}
    warmup: dict[str, list[WarmUp]] = {}
    seconds = 0.0
    for launches in range(1, until.max_launches + 1):
        with launch() as blocks:
            if not blocks:
                raise ValueError("nothing to time: give at least one form")
            for name, block in blocks.items():
                warmup.setdefault(name, []).append(_warm_up(block, until.warmup_seconds, clock))
            begin = clock()
            for name, taken in _rounds(blocks, until, clock).items():
                samples.setdefault(name, []).append(np.asarray(taken, dtype=np.float64))
            seconds += (clock() - begin) / 1e9
        if launches >= until.min_launches:
            if _width(samples) <= until.target_width:
                return Timing(samples, warmup, "width")
            if seconds >= until.max_seconds:
                break
    return Timing(samples, warmup, "limit")


def in_this_process(forms: Mapping[str, Callable[[], object]]) -> Launch:
    """A launch of forms in this process: every launch uses the same functions.

    Args:
        forms: functions that run a form once, by its name.
    """
    blocks = {name: _block_of(run) for name, run in forms.items()}
    return lambda: nullcontext(blocks)


def of_rounds(rounds: Mapping[str, Sequence[Sequence[float]]]) -> Timing:
    """The samples of a runtime that measures by itself, as one launch without a known warm-up.

    Args:
        rounds: by form, the ms of each round's runs; equally many rounds of every form. The rounds of a form are cut to
            its shortest, so that each round has the same weight.
    """
    import numpy as np

    shortest = {name: min(map(len, taken)) for name, taken in rounds.items()}
    return Timing(
        {
            name: [np.asarray([one[: shortest[name]] for one in taken], dtype=np.float64)]
            for name, taken in rounds.items()
        },
        {name: [] for name in rounds},
        "limit",
    )


def _rounds(blocks: Mapping[str, Block], until: Until, clock: Callable[[], int]) -> dict[str, list[Sequence[float]]]:
    taken: dict[str, list[Sequence[float]]] = {name: [] for name in blocks}
    enough_runs, enough_ns = until.min_runs / until.min_launches, until.max_seconds / until.max_launches * 1e9
    begin, rounds = clock(), 0
    while rounds * BLOCK < enough_runs or clock() - begin < enough_ns:
        for name, block in blocks.items():
            taken[name].append(block())
        rounds += 1
    return taken


def _warm_up(block: Block, at_least: float, clock: Callable[[], int]) -> WarmUp:
    """Run blocks until their median no longer falls."""
    begin, medians, runs = clock(), [], 0
    while True:
        taken = block()
        runs += len(taken)
        medians.append(statistics.median(taken))
        seconds = (clock() - begin) / 1e9
        recent, earlier = medians[-_RECENT:], medians[-2 * _RECENT : -_RECENT]
        if len(earlier) == _RECENT and seconds >= at_least:
            is_steady = statistics.median(recent) > (1 - _FALL) * statistics.median(earlier)
            if is_steady or seconds >= _PATIENCE * at_least:
                return WarmUp(runs, seconds, is_steady)


def _width(samples: "Mapping[str, Sequence[np.ndarray]]") -> float:
    first, *others = samples.values()
    if not others:
        return relative_width(percentile(first, 50))
    return max(relative_width(speedup(first, other)) for other in others)


def _block_of(run: Callable[[], object]) -> Block:
    def block() -> list[float]:
        run()  # untimed: another form has used the caches
        return [_time_ms(run) for _ in range(BLOCK)]

    return block


def _time_ms(run: Callable[[], object]) -> float:
    begin = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - begin) / 1e6
