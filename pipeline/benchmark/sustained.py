"""Latency over minutes: whether a device that gets warm slows down."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipeline.benchmark.runners import Runner

if TYPE_CHECKING:
    import numpy as np

WINDOW_SECONDS = 10.0


def measure(
    runner: Runner,
    form: str,
    image: "np.ndarray",
    threads: int,
    seconds: float,
    *,
    window_seconds: float = WINDOW_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Run one form alone, without a pause, and sum up what each window of time saw.

    Args:
        runner: where.
        form: which.
        image: float32, of the file's input shape.
        threads: for the runtime.
        seconds: how long.
        window_seconds: of each window; the last may be shorter.
        clock: seconds, monotonic.

    Returns:
        JSON types: ``windows``, each with ``at_seconds`` (its begin), ``n``, ``p50_ms``, ``p90_ms``, ``cpu_mhz`` and
        ``temperature_c`` at its end (None where the system does not say); ``slowdown``, the highest p50 of a window
        over that of the first.

    Raises:
        StageError: a runtime failed, or ended its process.
        DeviceError: the link was cut.
    """
    import numpy as np

    windows: list[dict[str, Any]] = []
    with runner.alone(form, image, threads) as run_for:
        begin = clock()
        while not windows or clock() - begin < seconds:
            at = clock()
            taken = run_for(min(window_seconds, begin + seconds - at))
            seen = runner.snapshot()
            windows.append(
                {
                    "at_seconds": round(at - begin, 3),
                    "n": len(taken),
                    "p50_ms": round(float(np.percentile(taken, 50)), 6),
                    "p90_ms": round(float(np.percentile(taken, 90)), 6),
                    "cpu_mhz": seen.cpu_mhz,
                    "temperature_c": dict(seen.temperature_c) or None,
                }
            )
    slowest = max(window["p50_ms"] for window in windows)
    return {
        "form": form,
        "threads": threads,
        "seconds": seconds,
        "window_seconds": window_seconds,
        "windows": windows,
        "slowdown": round(slowest / windows[0]["p50_ms"], 4),
    }
