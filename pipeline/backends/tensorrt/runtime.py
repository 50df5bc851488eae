"""Engines on a GPU. Written for TensorRT 10.3 to 11.4 and TensorRT-RTX; it has run on no GPU yet.

If this machine has a GPU and a Python package that runs engines on it, that is used. If it has a GPU and
only trtexec, like a Jetson, trtexec times and profiles, and sessions are unavailable.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pipeline.artifacts.manifest import Unavailable
from pipeline.artifacts.samples import cut, fitting
from pipeline.backends.runtime import Session
from pipeline.backends.tensorrt import layer_info, trtexec
from pipeline.backends.tensorrt.engines import (
    MAKERS,
    check_engine,
    compute_capability,
    engine_maker,
    python_runtime,
    torch_has_cuda,
)
from pipeline.errors import InputError, StageError

if TYPE_CHECKING:
    import numpy as np
    import torch

ON_DEVICE = (
    "Copy the .onnx files and build_engine.sh to the device and run `sh build_engine.sh` there; it builds "
    "the engines and times them with trtexec."
)
_WARM_RUNS = 3  # before a graph is captured: the first run may still compile or allocate
_TRANSFERS = 50


def unavailable() -> Unavailable | None:
    """None where this machine has an NVIDIA GPU, and a TensorRT that runs on it or trtexec."""
    capability = compute_capability()
    if capability is None:
        return Unavailable("This machine has no NVIDIA GPU with a working driver.", ON_DEVICE)
    if trtexec.find() is not None or python_runtime() is not None:
        return None
    if not any(find_spec(name) for name in MAKERS):
        return Unavailable("TensorRT is not installed.", f"pip install tensorrt, or: {ON_DEVICE}")
    if not torch_has_cuda():
        return Unavailable(
            "torch is installed without CUDA, so it cannot hold an engine's buffers, and there is no trtexec.",
            "Install a torch with CUDA, or put trtexec on PATH; JetPack and NVIDIA's TensorRT have it.",
        )
    return Unavailable(
        f"This GPU has compute capability {capability}, which TensorRT-RTX does not run on, and full "
        f"TensorRT is not installed, or cannot be imported.",
        f"pip install tensorrt, or: {ON_DEVICE}",
    )


def open_session(file: Path, threads: int) -> Session:
    """Load an engine onto the GPU.

    Args:
        file: an .engine, or an .onnx that has its engine beside it.
        threads: of no meaning to a GPU.

    Returns:
        A session for the engine's own input shape, or any batch within its bounds. One call copies to the GPU, runs,
        copies back and waits.

    Raises:
        InputError: the file is not an engine, or one of another maker or version than what is installed.
        StageError: its library or a GPU is missing, or the engine was built for another GPU.
    """
    engine = _load(file)
    bound: dict[tuple[int, ...], _Bound] = {}

    def run(images: "np.ndarray") -> "list[np.ndarray]":
        import torch

        if images.shape not in bound:
            bound.clear()  # one set of buffers at a time
            bound[images.shape] = _bind(engine, images)
        ready = bound[images.shape]
        with torch.cuda.stream(ready.stream):
            fed = cut(torch.from_numpy(images), [one.shape for one in ready.host_inputs])
            for host, device, given in zip(ready.host_inputs, ready.device_inputs, fed, strict=True):
                host.copy_(given)
                device.copy_(host, non_blocking=True)
            ready.enqueue()
            for host, device in zip(ready.host_outputs, ready.device_outputs, strict=True):
                host.copy_(device, non_blocking=True)
        ready.stream.synchronize()
        return [one.numpy().copy() for one in ready.host_outputs]

    return run


def open_clock(file: Path, threads: int, image: "np.ndarray") -> Callable[[], float]:
    """The GPU time of one inference by its own clock, without transfers.

    The image is on the GPU. CUDA events enclose the network, which is one CUDA graph; where the
    driver cannot capture it, it is enqueued as it is.

    Args:
        file: as for `open_session`.
        threads: of no meaning to a GPU.
        image: float32, of a shape that the engine takes.

    Returns:
        A function that runs the network once, waits, and gives ms.

    Raises:
        InputError, StageError: as `open_session`.
    """
    import torch

    ready = _bind(_load(file), image)
    for _ in range(_WARM_RUNS):
        ready.enqueue()
    ready.stream.synchronize()
    launch = _captured(ready) or ready.enqueue
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def clock() -> float:
        with torch.cuda.stream(ready.stream):
            start.record()
            launch()
            end.record()
        end.synchronize()
        return start.elapsed_time(end)

    return clock


def transfer_ms(file: Path, image: "np.ndarray") -> dict[str, float]:
    """What it takes to bring an input to the GPU and its outputs back: the medians of some copies.

    Both lie in pinned memory of the host, so a copy takes what the bus takes.

    Returns:
        ``host_to_device`` and ``device_to_host``, ms.

    Raises:
        InputError, StageError: as `open_session`.
    """
    if _trtexec_alone():
        return trtexec.transfer_ms(file, image)
    ready = _bind(_load(file), image)
    ways = {
        "host_to_device": list(zip(ready.device_inputs, ready.host_inputs, strict=True)),
        "device_to_host": list(zip(ready.host_outputs, ready.device_outputs, strict=True)),
    }
    return {way: sum(_copy_ms(ready.stream, *pair) for pair in pairs) for way, pairs in ways.items()}


def time_files(
    files: Mapping[str, Path], image: "np.ndarray", *, warmup_seconds: float, min_runs: int, max_seconds: float
) -> dict[str, list[list[float]]] | None:
    """See `trtexec.time_files`; None where the sessions here run, and tell more."""
    if python_runtime() is not None:
        return None
    return trtexec.time_files(files, image, warmup_seconds=warmup_seconds, min_runs=min_runs, max_seconds=max_seconds)


def profile(file: Path, threads: int, image: "np.ndarray", runs: int) -> list[dict[str, Any]]:
    """Where the time of one inference goes, layer by layer, in the order of execution.

    Args:
        file: as for `open_session`.
        threads: of no meaning to a GPU.
        image: float32, of a shape that the engine takes.
        runs: that the median is taken of.

    Returns:
        ``name``, ``kind`` and ``ms`` of each layer; see `layers.joined`. The sum is above the time of a whole
        inference, since a layer that is timed does not overlap with the next.

    Raises:
        InputError, StageError: as `open_session`; of trtexec, where that is all there is.
    """
    if _trtexec_alone():
        return trtexec.profile(file, image, runs)
    import numpy as np

    engine = _load(file)
    ready = _bind(engine, image)
    for _ in range(_WARM_RUNS):
        ready.enqueue()
    ready.stream.synchronize()
    times: dict[str, list[float]] = {}

    class Note(engine.trt.IProfiler):
        def __init__(self) -> None:
            engine.trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times.setdefault(layer_name, []).append(ms)

    note = Note()
    engine.context.profiler = note
    for _ in range(runs):
        ready.enqueue()
        ready.stream.synchronize()
    inspector = engine.engine.create_engine_inspector()
    inspector.execution_context = engine.context
    information = inspector.get_engine_information(engine.trt.LayerInformationFormat.JSON)
    return layer_info.joined([(name, float(np.median(taken))) for name, taken in times.items()], information)


def _trtexec_alone() -> bool:
    """Whether trtexec is all there is to run an engine with on this machine's GPU."""
    return compute_capability() is not None and python_runtime() is None and trtexec.find() is not None


@dataclass(frozen=True)
class _Engine:
    """An engine on the GPU. Its parts have to go in the order opposite to this."""

    file: Path
    origin: str
    trt: ModuleType
    runtime: Any
    engine: Any
    context: Any


@dataclass(frozen=True)
class _Bound:
    """An engine with buffers that stay where they are: pinned ones of the host, and the GPU's own."""

    stream: "torch.cuda.Stream"
    host_inputs: "list[torch.Tensor]"
    device_inputs: "list[torch.Tensor]"
    device_outputs: "list[torch.Tensor]"
    host_outputs: "list[torch.Tensor]"
    enqueue: Callable[[], None]


def _load(file: Path) -> _Engine:
    file = file.with_suffix(".engine")
    maker, version = engine_maker(file)
    name = next(name for name, known in MAKERS.items() if known == maker)
    if find_spec(name) is None and python_runtime() is not None:
        check_engine(file, MAKERS[python_runtime()])  # says that this one's engines are another's
    try:
        trt = import_module(name)
    except ImportError as error:
        raise StageError(
            f"{file} was built by {maker} {version}, which is not installed ({error}). {ON_DEVICE}"
        ) from None
    check_engine(file, maker, trt.__version__)
    if compute_capability() is None:
        raise StageError(f"{file} needs an NVIDIA GPU, and this machine has none. {ON_DEVICE}")
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(file.read_bytes())
    if engine is None:
        raise StageError(
            f"{file} (built by {maker} {version}, loaded by {trt.__version__}) does not load on this GPU, of "
            f"compute capability {compute_capability()}. Engines run only on the GPU that they were built for: run "
            f"the export on this machine, or name its compute capability in the target's options."
        )
    return _Engine(file, f"{maker} {version}", trt, runtime, engine, engine.create_execution_context())


def _bind(loaded: _Engine, images: "np.ndarray") -> _Bound:
    """Buffers for images of one shape, the images already in them."""
    import torch

    if not torch.cuda.is_available():
        raise StageError(
            f"{loaded.file} needs buffers on the GPU, and torch {torch.__version__} has none here: its driver is "
            f"missing or too old, or this torch is for CPUs. Install another torch, or: {ON_DEVICE}"
        )
    engine, context, mode = loaded.engine, loaded.context, loaded.trt.TensorIOMode
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    taken = [name for name in names if engine.get_tensor_mode(name) == mode.INPUT]
    others = [name for name in names if engine.get_tensor_mode(name) == mode.OUTPUT]
    shapes = [tuple(None if size == -1 else size for size in engine.get_tensor_shape(name)) for name in taken]
    inputs = fitting(torch.from_numpy(images), shapes, loaded.file)
    if not all(context.set_input_shape(name, tuple(one.shape)) for name, one in zip(taken, inputs, strict=True)):
        smallest, _, largest = engine.get_tensor_profile_shape(taken[0], 0)
        raise InputError(
            f"{loaded.file} takes batches from {smallest[0]} to {largest[0]}, but got one of {len(images)}."
        )
    stream = torch.cuda.Stream()  # the default one cannot be captured, and waits for all others
    host_inputs = [array.contiguous().pin_memory() for array in inputs]
    device_inputs = [array.cuda() for array in host_inputs]
    device_outputs = [torch.zeros(tuple(context.get_tensor_shape(name)), device="cuda") for name in others]
    for name, array in zip((*taken, *others), (*device_inputs, *device_outputs), strict=True):
        context.set_tensor_address(name, array.data_ptr())
    torch.cuda.synchronize()  # the buffers were filled on another stream

    def enqueue() -> None:
        if not context.execute_async_v3(stream.cuda_stream):
            raise StageError(f"{loaded.file} (built by {loaded.origin}) failed to run.")

    return _Bound(
        stream,
        host_inputs,
        device_inputs,
        device_outputs,
        [torch.zeros(one.shape, pin_memory=True) for one in device_outputs],
        enqueue,
    )


def _captured(ready: _Bound) -> Callable[[], None] | None:
    """The network as one CUDA graph, so that a run is one launch; None where it cannot be captured."""
    import torch

    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=ready.stream):
            ready.enqueue()
    except (RuntimeError, StageError):
        torch.cuda.synchronize()
        return None
    return graph.replay


def _copy_ms(stream: "torch.cuda.Stream", target: "torch.Tensor", source: "torch.Tensor") -> float:
    import torch

    taken = []
    for _ in range(_TRANSFERS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(stream):
            start.record()
            target.copy_(source, non_blocking=True)
            end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end))
    return sorted(taken)[len(taken) // 2]
