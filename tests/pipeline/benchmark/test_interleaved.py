"""The order in which blocks are taken and what ends it, on a clock that a test drives."""

import itertools
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest

from pipeline.benchmark import interleaved, statistics
from pipeline.benchmark.interleaved import BLOCK, Until


class Machine:
    """Forms whose time passes only when a block is taken."""

    def __init__(self, **forms):
        self.forms, self.now, self.taken, self.launches = forms, 0.0, [], 0

    def clock(self) -> int:
        return round(self.now * 1e6)

    @contextmanager
    def launch(self):
        """Starts the forms, which take this many milliseconds a run: always as many, or what a function of the
        launch and of the block gives."""
        number, self.launches = self.launches, self.launches + 1
        yield {name: self._block(name, form, number) for name, form in self.forms.items()}
        self.taken.append("|")

    def _block(self, name, form, launch):
        count = itertools.count()

        def block():
            ms = form(launch, next(count)) if callable(form) else form
            self.taken.append(name)
            self.now += ms * BLOCK
            return [ms] * BLOCK

        return block

    def time(self, **until):
        return interleaved.time_in_turn(self.launch, Until(**BRIEFLY | until), clock=self.clock)


BRIEFLY = {
    "warmup_seconds": 0, "min_runs": 2 * BLOCK, "max_seconds": 0.001, "target_width": 0, "min_launches": 1,
    "max_launches": 1,
}  # fmt: skip


def test_blocks_are_taken_in_turn_after_a_warm_up_of_each_form():
    machine = Machine(a=1, b=3)
    timing = machine.time()
    assert "".join(machine.taken) == "aaaabbbb" + "abab" + "|"
    assert [launch.tolist() for launch in timing.samples_ms["a"]] == [[[1.0] * BLOCK] * 2]
    assert [launch.tolist() for launch in timing.samples_ms["b"]] == [[[3.0] * BLOCK] * 2]


def test_each_launch_starts_afresh_and_has_its_part_of_the_runs():
    machine = Machine(a=1)
    timing = machine.time(min_runs=20 * BLOCK, min_launches=4, max_launches=4)
    assert (machine.launches, machine.taken.count("|")) == (4, 4)
    assert [launch.shape for launch in timing.samples_ms["a"]] == [(5, BLOCK)] * 4
    assert len(timing.warmup["a"]) == 4


@pytest.mark.parametrize(("seconds", "runs"), [(0, 4 * BLOCK), (0.1, 100), (0.1001, 100 + BLOCK)])
def test_each_form_is_warmed_up_for_as_long_as_was_asked(seconds, runs):
    (warmup,) = Machine(a=1).time(warmup_seconds=seconds).warmup["a"]
    assert (warmup.runs, warmup.steady) == (runs, True)
    assert warmup.seconds == pytest.approx(runs / 1000)


def test_warm_up_goes_on_until_the_latencies_no_longer_fall():
    """The first ten blocks fall by 10 % each, then they stay."""
    machine = Machine(a=lambda launch, block: 10 * 0.9 ** min(block, 10))
    timing = machine.time(warmup_seconds=0.1)
    (warmup,) = timing.warmup["a"]
    assert warmup.steady
    assert warmup.runs == BLOCK * 14  # of the last four blocks both halves are of the level that stays
    assert (timing.samples_ms["a"][0] == 10 * 0.9**10).all()


def test_a_form_that_never_gets_steady_is_given_up_on_and_said_so():
    machine = Machine(a=lambda launch, block: 10 * 0.97**block)
    (warmup,) = machine.time(warmup_seconds=0.05).warmup["a"]
    assert not warmup.steady
    assert 0.5 <= warmup.seconds < 0.6


def test_latencies_that_rise_are_not_waited_for():
    (warmup,) = Machine(a=lambda launch, block: 1 + block).time().warmup["a"]
    assert (warmup.runs, warmup.steady) == (4 * BLOCK, True)


@pytest.mark.parametrize(("ms", "rounds"), [(1, 20), (1000, 3)])
def test_time_ends_the_rounds_but_never_before_the_runs_that_were_asked(ms, rounds):
    timing = Machine(a=ms).time(min_runs=11, max_seconds=0.1)
    assert timing.samples_ms["a"][0].shape == (rounds, BLOCK)


def test_all_launches_together_have_max_seconds():
    machine = Machine(a=1, b=lambda launch, block: 1 + launch % 2)
    timing = machine.time(max_seconds=1, min_launches=5, max_launches=5)
    seconds = sum(launch.sum() for launches in timing.samples_ms.values() for launch in launches) / 1000
    assert seconds == pytest.approx(1, abs=0.1)


def test_launches_end_once_the_interval_is_as_narrow_as_was_asked():
    timing = Machine(a=2, b=1).time(min_launches=3, max_launches=5, target_width=0.02)
    assert (len(timing.samples_ms["a"]), timing.stopped_by) == (3, "width")


def test_launches_that_differ_are_followed_by_more():
    machine = Machine(a=2, b=lambda launch, block: 1 + launch / 10)
    timing = machine.time(min_launches=3, max_launches=5, target_width=0.02, max_seconds=60)
    assert (len(timing.samples_ms["a"]), timing.stopped_by) == (5, "limit")


def test_no_further_launch_once_the_time_is_used_up():
    machine = Machine(a=2, b=lambda launch, block: 1000 + 100 * launch)
    timing = machine.time(min_launches=3, max_launches=5, target_width=0.02)
    assert (len(timing.samples_ms["a"]), timing.stopped_by) == (3, "limit")


@pytest.mark.parametrize(("third", "launches"), [(lambda launch, block: 1, 3), (lambda launch, block: 1 + launch, 5)])
def test_of_three_forms_the_widest_interval_counts(third, launches):
    machine = Machine(a=2, b=1, c=third)
    timing = machine.time(min_launches=3, max_launches=5, target_width=0.02, max_seconds=60)
    assert len(timing.samples_ms["a"]) == launches


@pytest.mark.parametrize(("form", "launches"), [(1, 3), (lambda launch, block: 1 + launch, 5)])
def test_of_one_form_the_interval_of_its_median_counts(form, launches):
    timing = Machine(a=form).time(min_launches=3, max_launches=5, target_width=0.02, max_seconds=60)
    assert len(timing.samples_ms["a"]) == launches


def test_intervals_cover_the_truth_with_the_early_stop_included():
    """Launches by half a percent and blocks by one: narrow enough after three launches in some cases."""
    random, covered, launches = np.random.default_rng(0), 0, Counter()
    for _ in range(150):
        luck = random.normal(0, 0.005, 5)
        machine = Machine(
            a=lambda launch, block: 2 * random.lognormal(luck[launch], 0.01),  # noqa: B023
            b=lambda launch, block: random.lognormal(0, 0.01),
        )
        timing = machine.time(min_runs=50, max_seconds=1, min_launches=3, max_launches=5, target_width=0.02)
        got = statistics.speedup(timing.samples_ms["a"], timing.samples_ms["b"])
        covered += got["low"] <= 2 <= got["high"]
        launches[len(got["by_launch"])] += 1
    assert covered >= 0.93 * 150
    assert launches[3] > 15 and launches[5] > 15


def test_functions_of_this_process_are_timed_by_the_wall_clock():
    ran = Counter()
    forms = {name: lambda name=name: ran.update([name]) for name in ("a", "b")}
    timing = interleaved.time_in_turn(interleaved.in_this_process(forms), Until(**BRIEFLY | {"max_launches": 2}))
    for name, launches in timing.samples_ms.items():
        assert all((launch > 0).all() for launch in launches)
        timed = sum(launch.size for launch in launches) + sum(warmup.runs for warmup in timing.warmup[name])
        assert ran[name] == timed * (BLOCK + 1) / BLOCK  # one run before each block is not timed


def test_what_a_runtime_timed_in_its_own_way_is_one_launch():
    timing = interleaved.of_rounds({"a": [[1, 2], [3, 4]], "b": [[5], [6]]})
    assert [launch.tolist() for launch in timing.samples_ms["a"]] == [[[1.0, 2.0], [3.0, 4.0]]]
    assert timing.samples_ms["b"][0].dtype == np.float64
    assert timing.warmup == {"a": [], "b": []}


@pytest.mark.parametrize(
    "until", [{"min_runs": 0}, {"min_launches": 0}, {"min_launches": 3, "max_launches": 2}], ids=str
)
def test_timing_nothing_is_an_error(until):
    with pytest.raises(ValueError, match="nothing to time: at least one run and one launch"):
        Machine(a=1).time(**until)


def test_timing_no_form_is_an_error():
    with pytest.raises(ValueError, match="nothing to time: give at least one form"):
        Machine().time()
