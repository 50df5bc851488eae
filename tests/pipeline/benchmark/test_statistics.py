"""Percentiles, speed-ups and their intervals against known answers, and how often they hold what is true."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.benchmark import statistics

LATENCIES = st.floats(1e-3, 1e3)


def launches(*values, rounds=10, runs=5):
    """One launch for each value, of nothing but it."""
    return [np.full((rounds, runs), float(value)) for value in values]


def test_summary_of_one_to_a_hundred():
    got = statistics.summary([np.arange(1, 51).reshape(10, 5), np.arange(51, 101).reshape(10, 5)])
    assert set(got.pop("interval")) == {"p50", "p90", "p99"}
    assert got == {
        "n": 100,
        "launches": 2,
        "min": 1.0,
        "mean": 50.5,
        "std": pytest.approx(29.011492),
        "p50": 50.5,
        "p90": pytest.approx(90.1),
        "p99": pytest.approx(99.01),
        "outliers": {"count": 0, "share": 0.0, "above_ms": pytest.approx(75.25 + 3 * 49.5)},
    }


def test_an_outlier_is_counted_and_kept():
    samples = np.tile([1.0, 1.1, 1.2, 1.3, 1.4], (20, 1))
    samples[3, 2] = 1000.0
    got = statistics.summary([samples])
    assert (got["n"], got["p50"]) == (100, 1.2)
    assert got["mean"] == pytest.approx((99 * 1.2 + 1000) / 100, abs=0.01)
    assert got["outliers"] == {"count": 1, "share": 0.01, "above_ms": pytest.approx(1.3 + 3 * 0.2)}


@settings(deadline=None)
@given(st.lists(st.lists(LATENCIES, min_size=5, max_size=5), min_size=1, max_size=30), st.integers(1, 4))
def test_summary_is_in_order_whatever_the_samples(rounds, times):
    got = statistics.summary([np.array(rounds)] * times)
    figures = [got[name] for name in ("min", "p50", "p90", "p99")]
    assert figures == sorted(figures)
    assert figures[0] == round(np.min(rounds), 6)
    assert figures[-1] <= round(np.max(rounds), 6) + 1e-6
    assert (got["n"], got["launches"]) == (np.size(rounds) * times, times)
    for name, interval in got["interval"].items():
        assert interval is None or interval[0] <= got[name] <= interval[1]


@pytest.mark.parametrize("samples", [[], [np.empty((0, 5))], [np.array([[1.0, np.nan]])], [np.array([[np.inf]])]])
def test_summary_of_nothing_or_of_no_number_is_an_error(samples):
    with pytest.raises(ValueError, match="at least one sample, and all of them finite"):
        statistics.summary(samples)


def test_interval_by_hand():
    """Student's t over the logarithms of 1, 2 and 4: mean log 2, deviation log 2, t of two degrees of freedom."""
    got = statistics.speedup(launches(1, 2, 4), launches(1, 1, 1))
    half = 4.303 * math.log(2) / math.sqrt(3)
    assert got["median"] == 2.0
    assert got["low"] == pytest.approx(2 * math.exp(-half), abs=1e-6)
    assert got["high"] == pytest.approx(2 * math.exp(half), abs=1e-6)


def test_a_percentiles_interval_stays_within_what_was_seen():
    assert statistics.percentile(launches(1, 2, 4), 50) == {"value": 2.0, "low": 1.0, "high": 4.0}
    half = 2.776 * 0.01 / math.sqrt(5)
    steps = [-1, -1, 0, 1, 1]  # hundredths, of deviation one
    got = statistics.percentile([np.tile([0.5, math.exp(step / 100), 9], (10, 1)) for step in steps], 50)
    bounds = [pytest.approx(math.exp(side * half), abs=1e-6) for side in (-1, 1)]
    assert [got["low"], got["high"]] == bounds


def test_a_percentile_is_only_bounded_where_enough_runs_were_slower():
    runs = {49: ["p50"], 50: ["p50", "p90"], 499: ["p50", "p90"], 500: ["p50", "p90", "p99"]}
    for count, bounded in runs.items():
        samples = [np.ones((1, count - 5)), np.ones((1, 5))]
        found = statistics.summary(samples)["interval"]
        assert [name for name, interval in found.items() if interval is not None] == bounded


def test_one_launch_is_cut_into_parts_and_a_single_round_has_no_interval():
    falling = np.repeat(np.arange(100, 0, -1.0)[:, None], 5, axis=1)
    got = statistics.percentile([falling], 50)
    assert got["low"] < got["value"] < got["high"]
    assert statistics.percentile([falling[:1]], 50) == {"value": 100.0, "low": None, "high": None}
    assert statistics.speedup([falling[:1]], [falling[:1]])["low"] is None


@settings(deadline=None)
@given(st.integers(2, 40), st.floats(0.1, 20), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_speedup_is_the_ratio_by_construction_however_the_machine_drifts(rounds, ratio, times, seed):
    random = np.random.default_rng(seed)
    after = [random.lognormal(0, 1, (rounds, 1)) * np.ones(5) for _ in range(times)]
    got = statistics.speedup([launch * ratio for launch in after], after)
    assert (got["median"], got["low"], got["high"]) == (pytest.approx(ratio, abs=2e-6),) * 3
    assert (got["n"], len(got["by_launch"])) == (rounds * times, times)


def test_one_slow_run_in_a_block_does_not_move_the_speedup():
    before, after = launches(3, 3), launches(1.5, 1.5)
    before[1][4, 2] = 900.0
    assert statistics.speedup(before, after)["median"] == 2.0


def test_a_speedup_says_what_each_launch_gave_and_how_it_was_made():
    got = statistics.speedup(launches(2, 3, 4), launches(1, 1, 1))
    assert (got["median"], got["by_launch"]) == (3.0, [2.0, 3.0, 4.0])
    assert got["method"] == (
        "median of the paired ratios of block medians, blocks of 5 runs taken in turn; "
        "95 % interval by Student's t over the medians of 3 launches"
    )
    assert statistics.speedup(launches(2), launches(1))["method"].endswith("10 consecutive parts of one launch")


def test_what_all_runs_of_a_launch_share_is_in_the_interval():
    """A thousand rounds that agree to a thousandth say little where the launches differ by a tenth."""
    random = np.random.default_rng(0)
    shift = [1.0, 1.1, 0.95]
    before = [one * random.normal(2, 0.002, (1000, 5)) for one in shift]
    got = statistics.speedup(before, launches(1, 1, 1, rounds=1000))
    assert got["low"] < 1.75 and got["high"] > 2.3


@pytest.mark.parametrize(("count", "between"), [(3, 0.0), (3, 0.02), (5, 0.0), (5, 0.02)])
def test_interval_covers_the_true_ratio_at_least_about_as_often_as_it_says(count, between):
    """Launches that differ, by nothing or by 2 %, and rounds within them that do."""
    random, covered = np.random.default_rng(0), 0
    for _ in range(300):
        luck = np.exp(random.normal(0, between, (count, 1, 1)))
        noise = random.lognormal(0, 0.05, (2, count, 40, 1)) * np.ones(5)
        got = statistics.speedup(list(2.0 * luck * noise[0]), list(noise[1]))
        covered += got["low"] <= 2.0 <= got["high"]
    assert 0.93 * 300 <= covered <= (1 if between == 0 else 0.985) * 300


def test_launches_that_agree_by_luck_are_not_believed_beyond_their_rounds():
    """Three launches of ratios all over the place, whose medians are all 2."""
    before = [np.repeat(np.linspace(1, 3, 41)[:, None], 5, axis=1)] * 3
    got = statistics.speedup(
        [np.random.default_rng(0).permutation(launch) for launch in before], launches(1, 1, 1, rounds=41)
    )
    assert got["by_launch"] == [2.0] * 3
    assert got["high"] - got["low"] > 0.2


@pytest.mark.parametrize("shapes", [((3, 5), (4, 5)), ((0, 5), (0, 5)), ((5,), (5,))])
def test_unpaired_samples_are_an_error(shapes):
    with pytest.raises(ValueError, match="as many rounds in each launch of both"):
        statistics.speedup(*([np.ones(shape)] for shape in shapes))


def test_blocks_of_one_form_may_be_longer_than_the_others():
    """As where each form is run for as long, and not as often."""
    got = statistics.speedup([np.full((6, 3), 4.0)], [np.full((6, 9), 2.0)])
    assert (got["median"], got["n"]) == (2.0, 6)


def test_unequal_launches_are_an_error():
    with pytest.raises(ValueError, match="as many rounds in each launch of both"):
        statistics.speedup(launches(1, 1), launches(1))


def test_relative_width():
    assert statistics.relative_width({"median": 2.0, "low": 1.9, "high": 2.3}) == pytest.approx(0.2)
    assert statistics.relative_width(statistics.percentile([np.ones((1, 5))], 50)) == math.inf
