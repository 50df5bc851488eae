"""Latency over time, window by window."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from pipeline.benchmark import conditions, sustained


class Clock:
    """Seconds that pass only where something runs."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def runner_of(clock, latency_ms, temperatures):
    """A device that gets slower: its latency and temperature by the time that has passed."""
    asked = []

    @contextmanager
    def alone(form, image, threads):
        def run_for(seconds):
            asked.append(round(seconds, 6))
            taken = [latency_ms(clock.now)] * 20
            clock.now += seconds
            return taken

        yield run_for

    def snapshot():
        return conditions.Snapshot(None, clock.now, None, None, 1500, temperatures(clock.now))

    return SimpleNamespace(alone=alone, snapshot=snapshot), asked


def test_a_device_that_throttles_shows_it():
    clock = Clock()
    runner, asked = runner_of(clock, lambda now: 2.0 if now < 20 else 3.0, lambda now: {"cpu": 40 + now})
    got = sustained.measure(runner, "fused", None, 4, 35, window_seconds=10, clock=clock)
    assert asked == [10, 10, 10, 5], "the last window is shorter"
    assert [one["at_seconds"] for one in got["windows"]] == [0, 10, 20, 30]
    assert [one["p50_ms"] for one in got["windows"]] == [2.0, 2.0, 3.0, 3.0]
    assert [one["temperature_c"] for one in got["windows"]] == [{"cpu": at} for at in (50.0, 60.0, 70.0, 75.0)]
    assert all((one["n"], one["cpu_mhz"]) == (20, 1500) for one in got["windows"])
    assert (got["form"], got["threads"], got["seconds"], got["slowdown"]) == ("fused", 4, 35, pytest.approx(1.5))


def test_a_system_without_temperatures_says_so():
    clock = Clock()
    runner, _ = runner_of(clock, lambda now: 1.0, lambda now: {})
    got = sustained.measure(runner, "fused", None, 1, 1, window_seconds=10, clock=clock)
    assert [(one["temperature_c"], one["cpu_mhz"]) for one in got["windows"]] == [(None, 1500)]
    assert got["slowdown"] == 1
