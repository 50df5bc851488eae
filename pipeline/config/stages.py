"""The settings of each stage: the part of the configuration that its result depends on."""

from typing import Any

from pydantic import Field

from pipeline.artifacts.manifest import ColorOrder, ImageSize, Resize
from pipeline.config.project import Bundle, Quantize, Training
from pipeline.config.schema import Strict
from pipeline.config.targets import Bench, Check


class NoSettings(Strict):
    """A stage with nothing to set."""


class SplitSettings(Strict):
    """Of the stage `split`."""

    name: str
    root: str | None
    val_fraction: float
    split_seed: int
    classes: int | str | tuple[str, ...] = "sorted"
    used_for: str | None = None
    scale: int = 1


class AdoptSettings(Strict):
    """Of the stage `adopt`."""

    arch: str
    image_size: ImageSize
    interpolation: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    color_order: ColorOrder = "RGB"
    resize: Resize = "shorter_side_then_crop"
    pixel_range: int = 1
    inputs: dict[str, tuple[int, ...]] | None = None

    @property
    def of_images(self) -> dict[str, Any]:
        """What `data.splits.Split.preprocessing` takes."""
        return {name: getattr(self, name) for name in AdoptSettings.model_fields if name != "arch"}


class TrainSettings(AdoptSettings):
    """Of the stage `train`."""

    training: Training


class RecalibrateSettings(Strict):
    """Of the stage `recalibrate`."""

    recalibrate_bn: int


class ExportSettings(Strict):
    """Of the stage `export`."""

    target: str
    model: str
    backend: str
    precision: str
    forms: tuple[str, ...]
    batch: int
    image_size: ImageSize | None
    options: dict[str, Any]


class CheckSettings(Strict):
    """Of the stage `check`."""

    backend: str
    check: Check
    target: str | None = Field(None, description="what the manifest must be of, as `model` and `precision`; None: any")
    model: str | None = None
    precision: str | None = None
    may_lose: bool = Field(
        False,
        description="a candidate of `precision: auto`; if its precision loses too much, it is only dropped",
    )


class ReferenceSettings(Strict):
    """Of the stage `reference`."""

    precision: str
    forms: tuple[str, ...]
    batch: int
    image_size: ImageSize | None
    bench: Bench


class BenchSettings(Strict):
    """Of the stage `bench`."""

    backend: str
    bench: Bench
    device: str = "local"
    device_python: str = "python3"
    runner: str | None = None


class RaceSettings(BenchSettings):
    """Of the stage `race`."""

    target: str
    model: str


class QuantizeSettings(Quantize):
    """Of the stage `quantize`."""

    may_lose: bool = Field(False, description="int8 is only a candidate, of targets of `precision: auto`")


class BundleSettings(Strict):
    """Of the stage `bundle`."""

    backend: str
    options: dict[str, Any]
    bundle: Bundle
