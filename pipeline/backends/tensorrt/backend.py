"""TensorRT: an ONNX file that any NVIDIA device builds from, and an engine built here.

An engine runs only on the GPU architecture and the version that it was built for. So the ONNX file is
what is shipped to a Jetson, with `build_engine.sh` that builds from it there. The engine that is built
here is for this machine's GPU (full TensorRT), or for the RTX GPUs that the target names (TensorRT-RTX,
which needs no GPU to build, and is never for a Jetson). Either way it proves that the file builds. Where
no builder is installed (a Mac, say), only the ONNX file and the script are written.
"""

from pathlib import Path

from pipeline.backends.base import Backend, BuiltOnDevice
from pipeline.backends.onnx import backend as onnx
from pipeline.backends.runtime import Runtime
from pipeline.backends.tensorrt import needs, on_device, runtime
from pipeline.backends.tensorrt.bundle import BUNDLE
from pipeline.backends.tensorrt.engines import engine_maker, inspect
from pipeline.backends.tensorrt.export import export, files, host, write_extras
from pipeline.backends.tensorrt.options import RULES


def signature(file: Path) -> None:
    """None: an engine is opened by its own runtime alone. InputError where it is not a whole engine."""
    engine_maker(file)


RUNTIME = Runtime(
    open_session=runtime.open_session,
    open_check_session=onnx.open_check_session,
    open_exact_session=onnx.open_exact_session,
    outputs_by_layer=onnx.outputs_by_layer,
    open_clock=runtime.open_clock,
    time_files=runtime.time_files,
    transfer_ms=runtime.transfer_ms,
    profile=runtime.profile,
)
BACKEND = Backend(
    name="tensorrt",
    title="TensorRT",
    runtime=RUNTIME,
    checked_by=onnx.CHECKED_BY,
    suffixes=(".engine",),
    packages=(
        *onnx.PACKAGES,
        "tensorrt",
        "tensorrt-cu12",
        "tensorrt-cu13",
        "tensorrt-rtx-cu12",
        "tensorrt-rtx-cu13",
    ),
    run_by=("tensorrt", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13"),
    signature=signature,
    census=onnx.census,
    unavailable=runtime.unavailable,
    export=export,
    files=files,
    extras=("build_engine.sh",),
    write_extras=write_extras,
    host=host,
    inspect=inspect,
    rules=RULES,
    built=BuiltOnDevice(on_device.on_device, on_device.versions),
    requirements=needs.REQUIREMENTS,
    built_here=needs.built_here,
    can_run_on=needs.can_run_on,
    bundle=BUNDLE,
)
