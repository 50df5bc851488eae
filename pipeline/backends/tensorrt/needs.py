"""Requirements of TensorRT on this machine and on devices."""

from collections.abc import Mapping

from pipeline.artifacts.manifest import version_numbers
from pipeline.backends.base import Can, Requirement, cannot
from pipeline.backends.tensorrt.engines import compute_capability
from pipeline.devices.facts import Inventory

OLDEST_TENSORRT = "10.3.0"
"""What the ONNX files and the options of trtexec are written for: JetPack 6.1."""

_OURS = ("tensorrt",)
REQUIREMENTS = (
    Requirement("onnx", "ONNX files, which TensorRT builds from", "build", _OURS),
    Requirement("onnxscript", "torch's ONNX exporter", "build", _OURS),
    Requirement("onnxruntime", "runs ONNX files in check, and as the reference", "check", _OURS),
    Requirement("tensorrt", "engines for this machine's GPU", "engine", _OURS, install="repnets[tensorrt]"),
    Requirement("tensorrt-rtx-cu13", "engines for RTX GPUs, built without one", "engine", _OURS),
    Requirement(
        "trtexec", "builds and times engines where NVIDIA's TensorRT is (a Jetson: JetPack)", "engine", _OURS, True,
        "install JetPack's or NVIDIA's TensorRT",
    ),
)  # fmt: skip


def built_here(met: set[str]) -> str:
    """See `base.Backend`."""
    if compute_capability() is not None and met & {"tensorrt", "trtexec"}:
        return "ONNX, engine"
    return "ONNX, RTX engine" if "tensorrt-rtx-cu13" in met else "ONNX alone"


def can_run_on(device: Inventory, wanted: Mapping[str, str]) -> Can:
    """See `base.Backend`: by trtexec."""
    if "trtexec" not in device.tools:
        how = "Install JetPack's or NVIDIA's TensorRT there: sudo apt-get install nvidia-jetpack on a Jetson."
        return cannot("no runtime", "There is no trtexec.", how)
    if device.trtexec is not None and version_numbers(device.trtexec) < version_numbers(OLDEST_TENSORRT):
        why = f"Its trtexec is TensorRT {device.trtexec}, older than {OLDEST_TENSORRT}."
        return cannot("too old", why, "Install JetPack 6.1 or later, or a later TensorRT.")
    return Can(True, f"by trtexec, TensorRT {device.trtexec or 'of unknown version'}")
