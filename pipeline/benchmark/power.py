"""Energy of an inference on a Jetson: the power of its rails while one form runs alone, less their idle power.

It is read from NVIDIA's tegrastats, which prints a line at each interval, with `NAME now/average` in mW for each rail.
The parser follows its documentation and published output; it has not run on a Jetson.
"""

import re
import statistics
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from pipeline.benchmark.runners import Runner
from pipeline.devices import Device, facts
from pipeline.errors import DeviceError

if TYPE_CHECKING:
    import numpy as np

INTERVAL_MS = 100
IDLE_SAMPLES = 50
ACTIVE_SECONDS = 5.0
_PATIENCE_SECONDS = 60
_TOTALS = ("VDD_IN", "POM_5V_IN")  # of the whole module, where a board measures it
_RAIL = re.compile(r"(?<!\S)([A-Z]\w*) (\d{1,7})(?:mW)?/(\d{1,7})(?:mW)?(?!\S)", re.ASCII)
_LINE, _LINES = 4096, 100_000  # characters of a line; lines that are kept, of hours


def rails_mw(line: str) -> dict[str, int]:
    """The present power of each rail in a line of tegrastats. Memory, which has another unit, is not a rail.

    Args:
        line: ``... CPU@43.5C VDD_IN 4940mW/4890mW VDD_SOC 1498mW/1498mW``; older versions leave ``mW`` out.
    """
    return {name: int(now) for name, now, _ in _RAIL.findall(line)}


def total_mw(rails: dict[str, int]) -> int:
    """Power of the module: of the rail that measures all of it, else the sum of all rails."""
    return next((rails[name] for name in _TOTALS if name in rails), sum(rails.values()))


def measure(
    runner: Runner,
    names: Sequence[str],
    image: "np.ndarray",
    threads: int,
    *,
    idle_samples: int = IDLE_SAMPLES,
    active_seconds: float = ACTIVE_SECONDS,
) -> dict[str, Any] | None:
    """Measure the power of each form, one after the other; None if the machine has no tegrastats.

    Args:
        runner: where.
        names: the forms.
        image: float32, of the files' input shape.
        threads: for the runtime.
        idle_samples: lines of tegrastats before anything runs, `INTERVAL_MS` apart.
        active_seconds: that each form runs without a pause.

    Returns:
        JSON types: ``rails``; ``measured``, the rail that counts, or ``sum``; ``idle_mw``, the median; by form, under
        ``forms``, ``mw``, the median, ``samples``, and ``energy_mj`` of one inference: (mw - idle_mw) times its mean
        time.

    Raises:
        DeviceError: tegrastats prints no rail, or nothing; the link was cut.
        StageError: a runtime failed.
    """
    device = runner.device or facts.here()
    if device.run("command -v tegrastats").returncode:
        return None
    with _samples(device) as samples:
        samples.wait_for(idle_samples)
        idle = statistics.median(samples.totals())
        forms = {}
        for name in names:
            with runner.alone(name, image, threads) as run_for:
                begin = len(samples.taken)
                took = run_for(active_seconds)
                samples.wait_for(begin + 1)
            totals = samples.totals()[begin:]
            active, mean_ms = statistics.median(totals), statistics.fmean(took)
            energy = max(0.0, active - idle) * mean_ms / 1000
            forms[name] = {"mw": active, "samples": len(totals), "energy_mj": round(energy, 6)}
        rails = sorted(samples.taken[0])
    return {
        "source": "tegrastats",
        "rails": rails,
        "measured": next((name for name in _TOTALS if name in rails), "sum"),
        "interval_ms": INTERVAL_MS,
        "idle_mw": idle,
        "forms": forms,
    }


class _Samples:
    """The rails of each line so far, as a thread takes them."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.taken: list[dict[str, int]] = []
        self.more = threading.Condition()
        self.has_ended = False

    def read(self, lines: IO[str]) -> None:
        while (line := lines.readline(_LINE)) and len(self.taken) < _LINES:
            with self.more:
                if rails := rails_mw(line):
                    self.taken.append(rails)
                self.more.notify()
        with self.more:
            self.has_ended = True
            self.more.notify()

    def wait_for(self, count: int) -> None:
        with self.more:
            self.more.wait_for(lambda: self.has_ended or len(self.taken) >= count, _PATIENCE_SECONDS)
            if len(self.taken) < count:
                raise DeviceError(
                    f"tegrastats on {self.device.name} printed {len(self.taken)} lines with power rails, and then "
                    f"none. Run it there by hand to see why: tegrastats --interval {INTERVAL_MS}"
                )

    def totals(self) -> list[int]:
        return [total_mw(rails) for rails in self.taken]


@contextmanager
def _samples(device: Device) -> Iterator[_Samples]:
    samples = _Samples(device)
    with device.start(["tegrastats", "--interval", str(INTERVAL_MS)]) as running:
        reader = threading.Thread(target=samples.read, args=(running.stdout,), daemon=True)
        reader.start()
        try:
            yield samples
        finally:
            running.kill()
            running.stdin.close()
            reader.join()
