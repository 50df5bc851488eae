"""TensorRT: an ONNX file that any NVIDIA device builds from, and an engine built here.

An engine runs only on the GPU architecture and the version that it was built for. So the ONNX file is
what is shipped to a Jetson, with `build_engine.sh` that builds from it there. The engine that is built
here is for this machine's GPU (full TensorRT), or for the RTX GPUs that the target names (TensorRT-RTX,
which needs no GPU to build, and is never for a Jetson). Either way it proves that the file builds. Where
neither is installed (a Mac, say), only the ONNX file and the script are written.
"""

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pipeline.backends import onnx, tensorrt_build
from pipeline.errors import InputError, StageError
from pipeline.manifest import ExportSpec, Unavailable

if TYPE_CHECKING:
    import numpy as np
    import torch

_BUILDERS = tuple(name for name in tensorrt_build.MAKERS if find_spec(name))

FILES: tuple[str, ...] = ("{form}.onnx", "{form}.engine") if _BUILDERS else ("{form}.onnx",)
EXTRAS: tuple[str, ...] = ("build_engine.sh",)
PACKAGES: tuple[str, ...] = (
    *onnx.PACKAGES,
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt-rtx-cu12",
    "tensorrt-rtx-cu13",
)
CHECKED_BY = onnx.CHECKED_BY

_MAKERS = {b"ftrt": "TensorRT", b"vtrt": "TensorRT-RTX"}
_ON_DEVICE = (
    "Copy the .onnx files and build_engine.sh to the device and run `sh build_engine.sh` there; it builds "
    "the engines and times them with trtexec."
)

census = onnx.census
open_check_session = onnx.open_check_session


def export(program: "torch.export.ExportedProgram", files: Sequence[Path], spec: ExportSpec) -> dict[str, Any]:
    """Write the ONNX file and build an engine from it.

    Args:
        program: float32, of static shape ``spec.input_shape``.
        files: where the .onnx goes, and where a builder is installed the .engine.
        spec: the option ``compute_capabilities``, e.g. ``("8.6", "12.0")``, names the GPUs that
            TensorRT-RTX builds for; full TensorRT builds for this machine's GPU.

    Returns:
        ``opset`` of the ONNX file, and of the engine ``maker``, ``version``, ``compute_capabilities``, and
        which other maker was ``passed_over`` and why.

    Raises:
        StageError: an operation has no ONNX counterpart, or the build fails.
    """
    onnx_file, *engine_files = files
    facts = onnx.export(program, [onnx_file], spec)
    if not engine_files:
        return {**facts, "maker": None, "reason": "no TensorRT is installed on the machine that exported this"}
    return {**facts, **build(onnx_file, engine_files[0], spec.options["compute_capabilities"])}


def build(onnx_file: Path, engine_file: Path, compute_capabilities: Sequence[str]) -> dict[str, Any]:
    """Build an engine from an ONNX file, in a fresh process.

    Args:
        onnx_file: what to build from; it carries the precision.
        engine_file: where the engine goes.
        compute_capabilities: for TensorRT-RTX, at least one, e.g. ``"8.9"``.

    Returns:
        ``maker``, ``version``, ``compute_capabilities``, ``passed_over``.

    Raises:
        InputError: no compute capability is named, or the ONNX file is not valid.
        StageError: no builder is installed, or the build fails.
    """
    if not compute_capabilities:
        raise InputError("`compute_capabilities` is empty, so there is no GPU to build for. Name one, e.g. `['8.9']`.")
    onnx.check(onnx_file)  # the parser takes an empty file or text for a network without layers
    command = [
        sys.executable,
        "-m",
        tensorrt_build.__name__,
        str(onnx_file.absolute()),
        str(engine_file.absolute()),
    ]
    project = Path(__file__).parents[2]
    done = subprocess.run([*command, *compute_capabilities], cwd=project, capture_output=True, text=True)
    try:
        told = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        told = {"error": f"the builder ended with {done.returncode}: {done.stderr.strip()[-500:]}"}
    if "missing" in told:
        reasons = "; ".join(f"{maker}: {reason}" for maker, reason in told["missing"].items())
        raise StageError(
            f"no engine can be built from {onnx_file.name} on this machine ({reasons}). On Linux x86-64 or "
            f"Windows: pip install tensorrt-rtx-cu13. On a Jetson, TensorRT is part of JetPack. There is "
            f"none for a Mac: run this target on another machine."
        )
    if "error" in told:
        raise StageError(f"no engine could be built from {onnx_file}: {told['error']}")
    maker, version = engine_maker(engine_file)
    if told["maker"] != maker:
        raise StageError(f"{engine_file} was to come from {told['maker']}, but its header names {maker} {version}.")
    if maker == "TensorRT":
        told["compute_capabilities"] = [capability] if (capability := _gpu()) else []
    return told


def write_extras(files: Sequence[Path], spec: ExportSpec) -> None:
    """Write ``build_engine.sh``, which builds and times the engines on a device that has TensorRT."""
    files[0].write_text(_SCRIPT)
    files[0].chmod(0o755)


def engine_maker(file: Path) -> tuple[str, str]:
    """Who built an engine, ``TensorRT`` or ``TensorRT-RTX``, and its version; read from its header alone.

    Raises:
        InputError: the file is missing or not an engine.
    """
    try:
        with file.open("rb") as opened:
            header = opened.read(28)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}. Run the export again.") from None
    if header[:4] not in _MAKERS or len(header) < 28:
        raise InputError(f"{file} is not a TensorRT engine: it starts with {header[:4]!r}. Run the export again.")
    return _MAKERS[header[:4]], ".".join(str(number) for number in header[24:28])


def host() -> str | None:
    """The GPU that an engine built here is for; None where TensorRT-RTX builds, the same on any machine."""
    capability = _gpu()
    return f"compute capability {capability}" if capability and find_spec("tensorrt") else None


def unavailable() -> Unavailable | None:
    """None where this machine has an NVIDIA GPU and a TensorRT that runs on it."""
    capability = _gpu()
    if capability is None:
        return Unavailable("This machine has no NVIDIA GPU with a working driver.", _ON_DEVICE)
    if find_spec("tensorrt") is not None:
        return None
    if find_spec("tensorrt_rtx") is None:
        return Unavailable("TensorRT is not installed.", f"pip install tensorrt, or: {_ON_DEVICE}")
    if capability in tensorrt_build.compute_capabilities(import_module("tensorrt_rtx")):
        return None
    return Unavailable(
        f"This GPU has compute capability {capability}, which TensorRT-RTX does not run on, and full "
        f"TensorRT is not installed.",
        f"pip install tensorrt, or: {_ON_DEVICE}",
    )


def open_session(file: Path, threads: int) -> "Callable[[np.ndarray], np.ndarray]":
    """Load an engine onto the GPU. Written for TensorRT 10.3 to 11.4 and TensorRT-RTX; run on no GPU yet.

    Args:
        file: an .engine, or an .onnx that has its engine beside it.
        threads: of no meaning to a GPU.

    Returns:
        float32 (N, 3, H, W) of the file's own shape -> float32 logits (N, classes). One call copies to the
        GPU, runs, copies back and waits.

    Raises:
        InputError: the file is not an engine.
        StageError: its library or a GPU is missing, or the engine was built for another GPU or version.
    """
    file = file.with_suffix(".engine")
    maker, version = engine_maker(file)
    name = next(name for name, known in tensorrt_build.MAKERS.items() if known == maker)
    try:
        trt = import_module(name)
    except ImportError as error:
        raise StageError(
            f"{file} was built by {maker} {version}, which is not installed ({error}). {_ON_DEVICE}"
        ) from None
    if _gpu() is None:
        raise StageError(f"{file} needs an NVIDIA GPU, and this machine has none. {_ON_DEVICE}")
    return _session(trt, file, f"built by {maker} {version}, loaded by {trt.__version__}")


def _session(trt: ModuleType, file: Path, origin: str) -> "Callable[[np.ndarray], np.ndarray]":
    import torch

    logger = trt.Logger(trt.Logger.ERROR)
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(file.read_bytes())
    if engine is None:
        raise StageError(
            f"{file} ({origin}) does not load on this GPU, of compute capability {_gpu()}. Engines run only "
            f"on the GPU and version that they were built for: run the export on this machine, or name its "
            f"compute capability in the target's options."
        )
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    one = next(name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT)
    other = next(name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT)
    shape = tuple(engine.get_tensor_shape(one))
    context.set_input_shape(one, shape)
    buffers = {name: torch.zeros(tuple(context.get_tensor_shape(name)), device="cuda") for name in (one, other)}
    for name, buffer in buffers.items():
        context.set_tensor_address(name, buffer.data_ptr())
    stream = torch.cuda.Stream()
    held = (runtime, engine, context)  # in this order, for as long as the session lives

    def run(images: "np.ndarray") -> "np.ndarray":
        if images.shape != shape:
            raise InputError(f"{file} takes an input of shape {shape}, but got {images.shape}.")
        with torch.cuda.stream(stream):
            buffers[one].copy_(torch.from_numpy(images))
            if not held[2].execute_async_v3(stream.cuda_stream):
                raise StageError(f"{file} ({origin}) failed to run.")
            logits = buffers[other].cpu()
        return logits.numpy()

    return run


def _gpu() -> str | None:
    """Compute capability of the first NVIDIA GPU, e.g. ``8.7``, asked of the driver; None without one."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    asked = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # COMPUTE_CAPABILITY_MAJOR
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)  # COMPUTE_CAPABILITY_MINOR
    )
    return None if asked else f"{major.value}.{minor.value}"


_SCRIPT = """\
#!/bin/sh
# Build a TensorRT engine from each ONNX file in this folder, for the GPU of the device that this runs
# on, and time it. An engine runs only on the GPU architecture and TensorRT version it was built for.
#
#   sh build_engine.sh
#
# Needs trtexec: on a Jetson it is part of JetPack (/usr/src/tensorrt/bin), elsewhere of TensorRT.
# Gives <form>.engine and <form>.times.json, a list with one entry a run: computeMs, latencyMs and more.
# For steady figures on a Jetson, first: sudo nvpmodel -m 0 && sudo jetson_clocks
set -eu
cd "$(dirname "$0")"
PATH="$PATH:/usr/src/tensorrt/bin"
command -v trtexec > /dev/null || {
    echo "error: trtexec is not on PATH; install JetPack's or NVIDIA's TensorRT" >&2
    exit 1
}

for onnx in *.onnx; do
    form="${onnx%.onnx}"
    # The ONNX file carries the precision, so the network is strongly typed and no precision is set here.
    trtexec --onnx="$onnx" --saveEngine="$form.engine.new" --stronglyTyped --skipInference
    mv "$form.engine.new" "$form.engine"
    trtexec --loadEngine="$form.engine" --useCudaGraph --useSpinWait --noDataTransfers \\
        --warmUp=500 --duration=10 --iterations=100 --percentile=50,90,99 --exportTimes="$form.times.json"
done
"""
