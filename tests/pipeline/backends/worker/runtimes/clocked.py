"""The affine runtime on a device that has a clock of its own."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from runtimes import affine

from pipeline.backends.runtime import Runtime


def open_clock(file: Path, threads: int, image: np.ndarray) -> Callable[[], float]:
    session = affine.open_session(file, threads)

    def run() -> float:
        session(image)
        return 7.5

    return run


RUNTIME = Runtime(open_session=affine.open_session, open_clock=open_clock)
