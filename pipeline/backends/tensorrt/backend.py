"""TensorRT: an ONNX file that any NVIDIA device builds from, and an engine built here.

An engine runs only on the GPU architecture and the version that it was built for. So the ONNX file is
what is shipped to a Jetson, with `build_engine.sh` that builds from it there. The engine that is built
here is for this machine's GPU (full TensorRT), or for the RTX GPUs that the target names (TensorRT-RTX,
which needs no GPU to build, and is never for a Jetson). Either way it proves that the file builds. Where
no builder is installed (a Mac, say), only the ONNX file and the script are written.
"""

from pipeline.backends.onnx import backend as onnx
from pipeline.backends.onnx.backend import census, open_check_session, open_exact_session, outputs_by_layer
from pipeline.backends.tensorrt.engines import check_engine, compute_capability, engine_maker, inspect
from pipeline.backends.tensorrt.export import BUILDS, build, export, host, write_extras
from pipeline.backends.tensorrt.on_device import on_device, versions
from pipeline.backends.tensorrt.runtime import open_clock, open_session, profile, time_files, transfer_ms, unavailable

__all__ = [
    "build",
    "census",
    "check_engine",
    "compute_capability",
    "engine_maker",
    "export",
    "host",
    "inspect",
    "on_device",
    "open_check_session",
    "open_clock",
    "open_exact_session",
    "open_session",
    "outputs_by_layer",
    "profile",
    "time_files",
    "transfer_ms",
    "unavailable",
    "versions",
    "write_extras",
]

FILES: tuple[str, ...] = ("{form}.onnx", "{form}.engine") if BUILDS else ("{form}.onnx",)
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
