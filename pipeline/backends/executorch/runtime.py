"""ExecuTorch's runtime: open, run and profile a .pte."""

import tempfile
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pipeline.artifacts.manifest import versions
from pipeline.artifacts.samples import fitting
from pipeline.backends.executorch import pte
from pipeline.backends.executorch.flatbuffer import FlatBuffer
from pipeline.backends.runtime import Runtime, Session
from pipeline.errors import StageError, first_line, reading
from pipeline.quiet import quiet

if TYPE_CHECKING:
    import numpy as np

WARMUP_RUNS = 10
"""Executions that a profile leaves out."""

_KINDS = (  # of XNNPACK's operators and ExecuTorch's kernels, by what their names hold
    ("convolution", "dwconv", "depthwise"),
    ("convolution", "conv", "convolution"),
    ("", "fully connected", "linear"),
    ("", "addmm", "linear"),
)

_threads_of_process: list[int] = []


def open_session(file: Path, threads: int) -> Session:
    """Load a .pte for timing or comparing. Run it in a process of its own: a damaged file can kill that.

    Args:
        file: a .pte.
        threads: of XNNPACK's pool. The pool belongs to the process and is set before the first load.

    Returns:
        A session for the file's own input shapes.

    Raises:
        InputError: the file is not a whole ExecuTorch program.
        StageError: the runtime refuses it, or this process already runs on another number of threads.
    """
    return _open(file, threads)[1]


def profile(file: Path, threads: int, image: "np.ndarray", runs: int) -> list[dict[str, Any]]:
    """Where the time of one inference goes: ExecuTorch's own event trace (ETDump), with XNNPACK's operators in it.

    Args:
        file: a .pte.
        threads: of XNNPACK's pool, as for `open_session`.
        image: float32 (N, 3, H, W) of the file's own shape.
        runs: that each figure is taken from.

    Returns:
        Operations in the order of execution: ``name``, the operator's own; ``kind``, ``convolution``, ``depthwise``,
        ``linear`` or ``other``; ``ms``, the mean of the middle half of the runs: XNNPACK counts whole microseconds.

    Raises:
        InputError, StageError: as `open_session`; the trace is not what this reads.
    """
    program, run = _open(file, threads, trace=True)
    for _ in range(WARMUP_RUNS + runs):
        run(image)
    with tempfile.TemporaryDirectory(prefix="repnets-") as folder:
        trace = Path(folder, "trace.etdp")
        program.write_etdump_result_to_file(str(trace), str(trace.with_suffix(".bin")))
        return read_trace(trace.read_bytes(), runs, file)


def read_trace(dump: bytes, runs: int, file: Path) -> list[dict[str, Any]]:
    """What `profile` gives, of an event trace with `WARMUP_RUNS` executions and then those that count.

    Args:
        dump: the trace, an ETDump.
        runs: that count.
        file: what ran.

    Raises:
        InputError: the trace is damaged.
        StageError: it is not of so many executions of one program.
    """
    with reading(f"the event trace of {file}", "Run it again."):
        executions = [execution for execution in _executions(dump) if execution][WARMUP_RUNS:]
    names = [[name for name, _ in execution] for execution in executions]
    if len(executions) != runs or any(one != names[0] for one in names):
        raise StageError(
            f"{file}: ExecuTorch's event trace holds {len(executions)} executions of {runs}, or they differ, so where "
            "the time goes cannot be told. Use the version of ExecuTorch that the project names, or report it."
        )
    columns = zip(*executions, strict=True)
    return [
        {"name": column[0][0], "kind": _kind(column[0][0]), "ms": _typical([ms for _, ms in column])}
        for column in columns
    ]


def _open(file: Path, threads: int, *, trace: bool = False) -> tuple[Any, Session]:
    content = pte.read_whole(file)
    with quiet():
        import torch

        library = _library()
        _set_threads(library, threads)
        try:
            program = library._load_program_from_buffer(
                content,
                enable_etdump=trace,
                debug_buffer_size=0,
                program_verification=library.Verification.InternalConsistency,
            )
            method = program.load_method("forward")
        except RuntimeError as error:
            raise StageError(
                f"ExecuTorch {versions('executorch')['executorch']} refuses {file}: {first_line(error)}. "
                f"Export it again with the installed version."
            ) from error
    about = method.method_meta()
    shapes = [tuple(about.input_tensor_meta(place).sizes()) for place in range(about.num_inputs())]

    held = (content, program, method)  # a method whose program or bytes were dropped is a segmentation fault

    def run(images: "np.ndarray") -> "list[np.ndarray]":
        # XNNPACK reads the bytes as NCHW whatever the strides say.
        inputs = [torch.from_numpy(one).contiguous() for one in fitting(images, shapes, file)]
        return [one.numpy() for one in held[-1](inputs)]

    return program, run


def _library() -> ModuleType:
    """The runtime's own module. The public one around it imports the whole exporter too, which takes seconds."""
    import torch  # noqa: F401  (its shared libraries are needed)

    try:
        from executorch.extension.pybindings import _C
    except ImportError:
        from executorch.extension.pybindings import portable_lib as _C
    return _C


def _set_threads(library: ModuleType, threads: int) -> None:
    if not _threads_of_process:
        library._unsafe_reset_threadpool(threads)
        _threads_of_process.append(threads)
    if _threads_of_process != [threads]:
        raise StageError(
            f"this process runs ExecuTorch on {_threads_of_process[0]} threads and cannot change to "
            f"{threads}: resetting the pool after a load is a segmentation fault. Open the session in a "
            f"process of its own."
        )


def _executions(dump: bytes) -> list[list[tuple[str, float]]]:
    """Name and ms of each operation, for each execution in an ETDump (schema etdump_schema_flatcc.fbs).

    The trace has XNNPACK's operators, which carry an identifier of the delegate's, and ExecuTorch's own kernels
    (``native_call_``). The calls around them would count their time twice.
    """
    trace, found = FlatBuffer(dump), []
    for block in trace.tables(trace.root(start=4), 1):
        operations = []
        for event in trace.tables(block, 3):
            about = trace.child(event, 0)
            if about is None:
                continue
            name = trace.text(about, 0)
            operator = trace.text(about, 4)
            if operator or name.startswith("native_call_"):
                begin, end = (trace.scalar(about, slot, "<Q") for slot in (6, 7))
                operations.append((operator or name.removeprefix("native_call_"), (end - begin) / 1e6))
        found.append(operations)
    return found


def _kind(name: str) -> str:
    low = name.lower()
    return next((kind for first, second, kind in _KINDS if first in low and second in low), "other")


def _typical(samples_ms: list[float]) -> float:
    quarter = len(samples_ms) // 4
    middle = sorted(samples_ms)[quarter : len(samples_ms) - quarter]
    return round(sum(middle) / len(middle), 6)


RUNTIME = Runtime(open_session=open_session, profile=profile)
