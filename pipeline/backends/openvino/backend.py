"""OpenVINO: an .xml with its weights in a .bin, for Intel's and AMD's CPUs in edge boxes and industrial computers."""

from collections.abc import Mapping
from pathlib import Path

from pipeline.backends.base import Backend, BundleParts, Can, Requirement, cannot
from pipeline.backends.openvino import export, runtime
from pipeline.config.backend_rules import BackendRules
from pipeline.devices.facts import Inventory

_NAME = Path(__file__).parent.name
_WHEELS = ("x86_64", "aarch64", "arm64")  # that openvino has wheels for, by uname's names


def can_run_on(device: Inventory, wanted: Mapping[str, str]) -> Can:
    """See `base.Backend`."""
    if device.machine.architecture not in _WHEELS:
        why = f"There is no wheel of openvino for {device.machine.architecture}."
        return cannot("no runtime", why, f"Use a 64-bit system: {', '.join(_WHEELS)}.")
    how = "Copy a bundle there, python3 -m pip install openvino numpy, and run its selftest.py."
    return cannot("not known", "A device is not asked whether its Python has openvino.", how)


def data_files(file: Path) -> tuple[Path, ...]:
    """The weights of an .xml."""
    weights = file.with_suffix(".bin")
    return (weights,) if weights.exists() else ()


RUNTIME = runtime.RUNTIME
BACKEND = Backend(
    name=_NAME,
    title="OpenVINO",
    runtime=RUNTIME,
    checked_by="OpenVINO",
    suffixes=(".xml",),
    packages=("torch", "openvino"),
    run_by=("openvino",),
    signature=runtime.signature,
    census=runtime.census,
    unavailable=runtime.unavailable,
    data_files=data_files,
    export=export.export,
    files=lambda: ("{form}.xml", "{form}.bin"),
    rules=BackendRules(
        title="OpenVINO",
        precisions=("int8", "fp16", "fp32"),
        candidates=("fp32", "int8"),  # a CPU computes with float16 weights in float32
        not_on_devices="OpenVINO is timed on the machine that it is for by running the project there, not over "
        "{device}. Leave `device:` out.",
    ),
    requirements=(
        Requirement("openvino", "writes and runs .xml and .bin", "build", (_NAME,), install="repnets[openvino]"),
    ),
    can_run_on=can_run_on,
    bundle=BundleParts(
        folder=Path(__file__).with_name("shipped"),
        needs="OpenVINO's Python package (`pip install openvino numpy`)",
        files={"predict.py": "predict.py"},
    ),
)
