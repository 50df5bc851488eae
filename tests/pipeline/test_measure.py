"""Statistics against known answers, and the order in which runs are taken, on a clock that a test drives."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import measure

ROUNDS = st.integers(2, 40)
LATENCIES = st.floats(1e-3, 1e3)


class Clock:
    """Nanoseconds that pass only when a run says so."""

    def __init__(self):
        self.now, self.taken = 0, []

    def __call__(self) -> int:
        return self.now

    def run(self, name: str, milliseconds):
        """A form that takes this many milliseconds: always as many, or one after the other of an iterator."""
        each = iter(milliseconds) if hasattr(milliseconds, "__iter__") else itertools.repeat(milliseconds)

        def once() -> None:
            self.taken.append(name)
            self.now += int(next(each) * 1e6)

        return once


def blocks(values, rounds):
    return np.resize(np.asarray(values, dtype=float), (rounds, measure.BLOCK))


def test_summary_of_one_to_a_hundred():
    got = measure.summary(np.arange(1, 101), warmup=7)
    assert got == {
        "n": 100,
        "warmup": 7,
        "min": 1.0,
        "mean": 50.5,
        "std": pytest.approx(29.011492),
        "p50": 50.5,
        "p90": pytest.approx(90.1),
        "p99": pytest.approx(99.01),
    }


def test_summary_keeps_an_outlier():
    got = measure.summary(np.array([1.0] * 99 + [1000.0]), warmup=0)
    assert got["n"] == 100 and got["mean"] == pytest.approx(10.99) and got["p50"] == 1.0


@settings(deadline=None)
@given(st.lists(LATENCIES, min_size=1, max_size=50), st.integers(0, 9))
def test_summary_is_in_order_whatever_the_samples(samples, warmup):
    got = measure.summary(np.array(samples), warmup)
    figures = [got[name] for name in ("min", "p50", "p90", "p99")]
    assert figures == sorted(figures)
    assert figures[0] == round(min(samples), 6)
    assert figures[-1] <= round(max(samples), 6) + 1e-6
    assert (got["n"], got["warmup"]) == (len(samples), warmup)


@pytest.mark.parametrize("samples", [[], [1.0, np.nan], [np.inf]])
def test_summary_of_nothing_or_of_no_number_is_an_error(samples):
    with pytest.raises(ValueError, match="at least one sample, and all of them finite"):
        measure.summary(np.array(samples), 0)


@settings(deadline=None)
@given(ROUNDS, st.floats(0.1, 20), st.integers(0, 2**32 - 1))
def test_speedup_is_the_ratio_by_construction_however_the_machine_drifts(rounds, ratio, seed):
    after = np.random.default_rng(seed).lognormal(0, 1, (rounds, 1)) * np.ones(measure.BLOCK)
    got = measure.speedup(after * ratio, after)
    assert (got["median"], got["low"], got["high"]) == (pytest.approx(ratio, abs=2e-6),) * 3
    assert got["n"] == rounds


@settings(deadline=None)
@given(st.lists(st.tuples(LATENCIES, LATENCIES), min_size=2, max_size=30))
def test_interval_holds_the_median_and_stays_within_the_ratios(pairs):
    before, after = (np.repeat(np.array(one)[:, None], 3, axis=1) for one in zip(*pairs, strict=True))
    got, ratios = measure.speedup(before, after), before[:, 0] / after[:, 0]
    assert ratios.min() - 1e-6 <= got["low"] <= got["median"] + 1e-6
    assert got["median"] - 1e-6 <= got["high"] <= ratios.max() * (1 + 1e-9) + 1e-6


def test_one_slow_run_in_a_block_does_not_move_the_speedup():
    before, after = blocks(3.0, 10), blocks(1.5, 10)
    before[4, 2] = 900.0
    assert measure.speedup(before, after)["median"] == 2.0


def test_interval_covers_the_true_ratio_about_as_often_as_it_says():
    random, covered = np.random.default_rng(0), 0
    for _ in range(200):
        noise = random.lognormal(0, 0.1, (2, 30, 1)) * np.ones(measure.BLOCK)
        got = measure.speedup(2.0 * noise[0], noise[1])
        covered += got["low"] <= 2.0 <= got["high"]
    assert 180 <= covered < 200


def test_interval_is_the_same_each_time_and_says_how_it_was_made():
    random = np.random.default_rng(1)
    before, after = random.lognormal(1, 0.3, (20, 5)), random.lognormal(0, 0.3, (20, 5))
    got = measure.speedup(before, after)
    assert got == measure.speedup(before.copy(), after.copy())
    assert got["low"] < got["high"]
    assert got["method"] == (
        "median of 20 paired ratios of block medians, blocks of 5 runs taken in turn; "
        "95 % percentile bootstrap, 2000 resamples, seed 0"
    )


def test_interval_does_not_depend_on_how_the_resampling_is_cut_up_for_memory(monkeypatch):
    ratios = np.random.default_rng(2).lognormal(0, 0.2, (50, 5))
    whole = measure.speedup(ratios, np.ones_like(ratios))
    monkeypatch.setattr(measure, "_CHUNK", 50 * 7)
    assert measure.speedup(ratios, np.ones_like(ratios)) == whole


@pytest.mark.parametrize("shapes", [((3, 5), (4, 5)), ((0, 5), (0, 5)), ((5,), (5,))])
def test_unpaired_samples_are_an_error(shapes):
    with pytest.raises(ValueError, match="paired blocks have equal shapes"):
        measure.speedup(*(np.ones(shape) for shape in shapes))


def test_runs_are_taken_in_turn_and_timed_to_the_nanosecond():
    clock = Clock()
    forms = {"fused": clock.run("f", 1), "branched": clock.run("b", 3)}
    timing = measure.time_in_turn(forms, warmup_seconds=0, min_runs=10, max_seconds=0.001, clock=clock)
    turn = "f" * (1 + measure.BLOCK) + "b" * (1 + measure.BLOCK)
    assert "".join(clock.taken) == "fb" + turn * 2
    assert timing.samples_ms["fused"].tolist() == [[1.0] * 5] * 2
    assert timing.samples_ms["branched"].tolist() == [[3.0] * 5] * 2
    assert timing.warmup == {"fused": 1, "branched": 1}


def test_each_form_is_warmed_up_for_as_long_as_was_asked():
    clock = Clock()
    forms = {"fused": clock.run("f", 10), "branched": clock.run("b", 30)}
    timing = measure.time_in_turn(forms, warmup_seconds=0.1, min_runs=10, max_seconds=0.001, clock=clock)
    assert timing.warmup == {"fused": 10, "branched": 4}


@pytest.mark.parametrize(("milliseconds", "rounds"), [(1, 17), (1000, 3)])
def test_time_ends_the_rounds_but_never_before_the_runs_that_were_asked(milliseconds, rounds):
    clock = Clock()
    forms = {"fused": clock.run("f", milliseconds)}
    timing = measure.time_in_turn(forms, warmup_seconds=0, min_runs=11, max_seconds=0.1, clock=clock)
    assert timing.samples_ms["fused"].shape == (rounds, measure.BLOCK)


def test_the_first_run_of_a_block_is_not_timed():
    clock = Clock()
    latencies = [1.0] + [50.0, 1.0, 1.0, 1.0, 1.0, 1.0] * 2
    forms = {"fused": clock.run("f", latencies)}
    timing = measure.time_in_turn(forms, warmup_seconds=0, min_runs=10, max_seconds=0.001, clock=clock)
    assert timing.samples_ms["fused"].max() == 1.0


def test_timing_nothing_is_an_error():
    with pytest.raises(ValueError, match="nothing to time"):
        measure.time_in_turn({}, warmup_seconds=0, min_runs=10, max_seconds=1)
