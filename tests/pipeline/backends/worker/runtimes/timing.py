"""The affine runtime as one that times, transfers and profiles in a way of its own."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from runtimes import affine

from pipeline.backends.runtime import Runtime


def time_files(
    files: Mapping[str, Path], image: np.ndarray, *, warmup_seconds: float, min_runs: int, max_seconds: float
) -> dict[str, list[list[float]]]:
    assert image.dtype == np.float32 and all(file.exists() for file in files.values())
    return {form: [[1, 2], [3, 4, 5]] for form in files}


def transfer_ms(file: Path, image: np.ndarray) -> dict[str, float]:
    return {"host_to_device": 0.5, "device_to_host": 0.25}


def profile(file: Path, threads: int, image: np.ndarray, runs: int) -> list[dict[str, str | float]]:
    return [{"name": file.stem, "kind": "product", "ms": float(threads * runs)}]


RUNTIME = Runtime(open_session=affine.open_session, time_files=time_files, transfer_ms=transfer_ms, profile=profile)
