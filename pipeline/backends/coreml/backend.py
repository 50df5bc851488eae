"""Core ML: an ML program (.mlpackage) for iPhone, iPad and Mac, written on any system.

On systems without Core ML, `evaluator` runs the package.
"""

import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.backends.base import Backend
from pipeline.backends.coreml import needs, sessions
from pipeline.backends.coreml.bundle import BUNDLE
from pipeline.backends.coreml.compression import stored_weights
from pipeline.backends.coreml.compute_plan import profile
from pipeline.backends.coreml.export import export
from pipeline.backends.coreml.iphone import time_files
from pipeline.backends.coreml.options import RULES
from pipeline.backends.coreml.packages import census, inspect, signature
from pipeline.backends.coreml.runtime import open_session, unavailable
from pipeline.backends.coreml.sessions import outputs_by_layer
from pipeline.backends.runtime import Runtime

if TYPE_CHECKING:
    import numpy as np

_IS_MAC = platform.system() == "Darwin"


def open_check_session(file: Path, threads: int) -> "Callable[[np.ndarray], np.ndarray]":
    """The file in its own arithmetic: by Core ML on a Mac, else by the evaluator. See `running.open_session`."""
    return open_session(file, threads) if _IS_MAC else sessions.open_session(file, threads, exact=False)


def open_exact_session(file: Path, threads: int) -> "Callable[[np.ndarray], np.ndarray]":
    """The weights as they are stored, in float32 arithmetic, by the evaluator. See `running.open_session`."""
    return sessions.open_session(file, threads, exact=True)


RUNTIME = Runtime(
    open_session=open_session,
    open_check_session=open_check_session,
    open_exact_session=open_exact_session,
    outputs_by_layer=outputs_by_layer,
    time_files=time_files,
    profile=profile,
)
BACKEND = Backend(
    name="coreml",
    title="Core ML",
    runtime=RUNTIME,
    checked_by="Core ML" if _IS_MAC else "evaluator of ML programs",
    suffixes=(".mlpackage",),
    packages=("torch", "coremltools", "scikit-learn"),
    run_by=("coremltools",),
    signature=signature,
    census=census,
    unavailable=unavailable,
    export=export,
    files=lambda: ("{form}.mlpackage",),
    inspect=inspect,
    stored_weights=stored_weights,
    float_beside_int8="fp16",  # the Neural Engine computes in no float32, and not in int8 alone
    rules=RULES,
    requirements=needs.REQUIREMENTS,
    can_run_on=needs.can_run_on,
    bundle=BUNDLE,
)
