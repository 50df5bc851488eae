"""What a target can set under `options:`, backend by backend; and which device it can be timed on."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from pipeline import devices
from pipeline.config.schema import Strict, where
from pipeline.errors import InputError

PYTHON = "python3"
"""The program on a device that runs ExecuTorch, where nothing else is named."""

DEFAULT_SYSTEM: Literal["iOS16"] = "iOS16"


class DynamicBatch(Strict):
    """The batches that an engine takes, and the one that it is tuned for."""

    min: int = Field(1, ge=1)
    opt: int = Field(ge=1)
    max: int = Field(ge=2)

    @model_validator(mode="after")
    def _in_order(self) -> "DynamicBatch":
        if not self.min <= self.opt <= self.max or self.min == self.max:
            raise ValueError(
                f"dynamic_batch needs min <= opt <= max and min < max, not {self.min}, {self.opt}, {self.max}"
            )
        return self


class TensorRTOptions(Strict):
    """TensorRT: how engines are built; docs/tensorrt.md says what each is for."""

    compute_capabilities: tuple[str, ...] = Field(
        ("8.6", "8.9", "12.0"), description="GPUs that TensorRT-RTX builds for where full TensorRT is not installed"
    )
    dynamic_batch: DynamicBatch | None = Field(None, description="min, opt, max; default: `batch` alone")
    timing_cache: str | None = Field(None, description="a file; default: one in the store's folder")
    builder_optimization_level: int | None = Field(None, ge=0, le=5, description="default: TensorRT's own, 3")
    workspace_mb: int | None = Field(None, ge=1, description="memory that one layer may take, MiB; default: all")
    tf32: bool = Field(False, description="fp32 layers may compute with ten bits of fraction")


class CoreMLOptions(Strict):
    """Core ML: the oldest system to run on, what goes into the package besides the network, and where bench runs it."""

    minimum_deployment_target: Literal["iOS15", "iOS16", "iOS17", "iOS18"] = Field(
        DEFAULT_SYSTEM, description="or, where the precision needs a later one, that"
    )
    class_labels: bool = Field(False, description="a classifier: softmax, class label and probabilities come out")
    normalization: bool = Field(False, description="takes an image of 0..255; mean and std are in the package")
    compute_units: Literal["ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE"] = Field(
        "ALL", description="that Core ML may use where the package is run; NE is the Neural Engine"
    )
    device: Literal["mac", "iphone"] = Field("mac", description="that bench times: this Mac, or the iPhone connected")
    development_team: str | None = Field(None, description="of an Apple Developer account; signs the iPhone's runner")

    @model_validator(mode="after")
    def _iphone_can_be_reached(self) -> "CoreMLOptions":
        if self.device == "iphone" and not self.development_team:
            raise ValueError(
                "device: iphone needs development_team, the ten characters that Xcode signs an app for the phone with"
            )
        if self.device == "iphone" and self.normalization:
            raise ValueError(
                "device: iphone needs normalization: false; coremltools sends an iPhone arrays of numbers, no images"
            )
        return self


class ExecuTorchOptions(Strict):
    """ExecuTorch: nothing to choose yet."""


OLDEST_SYSTEM = {"int8": "iOS17", "w8": "iOS16", "w4": "iOS18", "palette6": "iOS16"}
"""Which Core ML reads these precisions at all."""

BY_BACKEND: dict[str, type[Strict]] = {
    "tensorrt": TensorRTOptions,
    "coreml": CoreMLOptions,
    "executorch": ExecuTorchOptions,
}
"""The options of each backend."""


def check_device(backend: str, device: str, python: str, runner: str | None, path: Path) -> None:
    """What target.yaml says of the device that bench runs on.

    Raises:
        InputError: it names no device, or one that the backend cannot be timed on; a program on a device where none
            is used.
    """
    try:
        is_local = devices.parse(device).is_local
    except InputError as error:
        raise InputError(f"{where(path, ('device',))}: {error}") from None
    if backend == "coreml" and not is_local:
        raise InputError(
            f"{where(path, ('device',))}: Core ML is timed on a Mac by running the project there, and on an iPhone "
            f"beside it, not over {device.partition(':')[0]}. Leave `device:` out; docs/core-ml-on-a-mac.md tells more."
        )
    for key, value, default in (("runner", runner, None), ("device_python", python, PYTHON)):
        if value != default and (is_local or backend != "executorch"):
            why = "bench runs on this machine" if is_local else f"{backend} does not use one"
            raise InputError(
                f"{where(path, (key,))}: `{key}:` names a program on a device that runs ExecuTorch, but {why}. Leave "
                "it out, or set `device:` to such a device."
            )
    if runner is not None and python != PYTHON:
        raise InputError(
            f"{where(path, ('runner',))}: `runner:` and `device_python:` each run the files. Leave one out."
        )
