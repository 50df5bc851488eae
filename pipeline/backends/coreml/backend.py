"""Core ML: an ML program (.mlpackage) for iPhone, iPad and Mac, written on any system.

Where Core ML itself is not, `evaluator` runs the package.
"""

import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.backends.coreml import sessions
from pipeline.backends.coreml.compression import stored_weights
from pipeline.backends.coreml.compute_plan import profile
from pipeline.backends.coreml.export import export
from pipeline.backends.coreml.iphone import time_files
from pipeline.backends.coreml.packages import census, inspect
from pipeline.backends.coreml.runtime import open_session, unavailable
from pipeline.backends.coreml.sessions import outputs_by_layer

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "census",
    "export",
    "inspect",
    "open_check_session",
    "open_exact_session",
    "open_session",
    "outputs_by_layer",
    "profile",
    "stored_weights",
    "time_files",
    "unavailable",
]

FILES: tuple[str, ...] = ("{form}.mlpackage",)
EXTRAS: tuple[str, ...] = ()
PACKAGES: tuple[str, ...] = ("torch", "coremltools", "scikit-learn")
_IS_MAC = platform.system() == "Darwin"
FLOAT_BESIDE_INT8 = "fp16"  # the Neural Engine computes in no float32, and not in int8 alone
CHECKED_BY = "Core ML" if _IS_MAC else "evaluator of ML programs"


def open_check_session(file: Path, threads: int) -> "Callable[[np.ndarray], np.ndarray]":
    """The file in its own arithmetic: by Core ML on a Mac, else by the evaluator. See `running.open_session`."""
    return open_session(file, threads) if _IS_MAC else sessions.open_session(file, threads, exact=False)


def open_exact_session(file: Path, threads: int) -> "Callable[[np.ndarray], np.ndarray]":
    """The weights as they are stored, in float32 arithmetic, by the evaluator. See `running.open_session`."""
    return sessions.open_session(file, threads, exact=True)


def host() -> None:
    """The files depend on no machine: any machine's will do for all."""
