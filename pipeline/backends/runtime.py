"""The interface of a backend's runtime, which `worker.server` uses.

It is copied to devices with a backend's runtime module, so it imports nothing of this project.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

Session = Callable[["np.ndarray"], "Sequence[np.ndarray]"]
"""An open file: float32 (N, C, H, W) -> each of its outputs in order, float32 (N, ...)."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """The functions that open, run and time a file. A module that runs files defines one as `RUNTIME`.

    None stands for an ability that a runtime lacks.

    Attributes:
        open_session: (file, threads) -> session. The target's own runtime, which `bench` times.
        open_check_session: (file, threads) -> session. The file in its own arithmetic, for `check`. None: as
            `open_session`.
        open_exact_session: (file, threads) -> session. The stored weights in float32 arithmetic.
        outputs_by_layer: (file, image, *, exact) -> {name: array}. The output of each operation, in the order of
            execution, by the name of the program's node that it came from.
        open_clock: (file, threads, image) -> () -> ms. Runs the file once, timed by the device itself, without
            transfers. None: the wall clock around a session.
        time_files: (files, image, *, warmup_seconds, min_runs, max_seconds) -> {form: rounds of ms}. For a runtime that
            times files by itself, in turn, equally many rounds of each form. It returns None if the usual way is to be
            used after all.
        transfer_ms: (file, image) -> {"host_to_device", "device_to_host"}. Of one input and one output, ms.
        profile: (file, threads, image, runs) -> [{"name", "kind", "ms"}]. Operations in the order of execution, with
            their median ms over the runs; ``kind`` is ``convolution``, ``depthwise``, ``linear`` or another word.
    """

    open_session: Callable[[Path, int], Session]
    open_check_session: Callable[[Path, int], Session] | None = None
    open_exact_session: Callable[[Path, int], Session] | None = None
    outputs_by_layer: "Callable[..., dict[str, np.ndarray]] | None" = None
    open_clock: "Callable[[Path, int, np.ndarray], Callable[[], float]] | None" = None
    time_files: "Callable[..., dict[str, list[list[float]]] | None] | None" = None
    transfer_ms: "Callable[[Path, np.ndarray], Mapping[str, float]] | None" = None
    profile: "Callable[[Path, int, np.ndarray, int], list[dict[str, Any]]] | None" = None
