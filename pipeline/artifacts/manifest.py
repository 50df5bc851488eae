"""Types that stages and backends share: preprocessing, the specification of an export, versions; and plain JSON."""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pipeline.artifacts.samples import InputShape, shape_of
from pipeline.errors import InputError, quoted

ColorOrder = Literal["RGB", "BGR", "gray"]
"""The channels of an input, in order."""
Resize = Literal["shorter_side_then_crop", "stretch", "letterbox"]
"""How an image of another size becomes one of the input's."""
ImageSize = int | tuple[int, int]
"""Side of a square, or height and width, pixels."""
LETTERBOX_FILL = 114
"""Level of the bars around a letterboxed image, as YOLO networks have it; 0 is black and 255 white."""
GRAY_OF_RGB = (0.299, 0.587, 0.114)
"""Weights of R, G and B in gray, of ITU-R BT.601."""


def channels_of(color_order: ColorOrder) -> int:
    """How many channels an image in that order has."""
    return 1 if color_order == "gray" else 3


def height_and_width(size: ImageSize) -> tuple[int, int]:
    """(height, width), pixels."""
    return size if isinstance(size, tuple) else (size, size)


def image_size_of(shape: Sequence[int]) -> ImageSize:
    """Of an input (N, C, H, W)."""
    height, width = shape[-2:]
    return height if height == width else (height, width)


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input; it is stored with every artifact.

    An RGB image in [0, 255] is divided by 255, made gray where the network takes gray, resized, put into
    ``color_order``, then ``(x - mean) / std`` per channel. A gray image of more than 8 bits is brought to [0, 255]
    first: 16-bit values divided by 257, floats in [0, 1] times 255. EXIF rotations are not applied.

    A network of several inputs is given what its data set gives, as float32: no image is prepared, and mean and std are
    empty.

    Attributes:
        image_size: side of the square input, or (height, width), pixels; of several inputs, of the first that is (C, H,
            W), else 1.
        mean, std: per channel in ``color_order``, of pixels in [0, 1].
        classes: name of each logit, in order.
        interpolation: ``bilinear`` or ``bicubic``, always antialiased.
        color_order: the channels; see `ColorOrder`. Gray is 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601).
        resize: ``shorter_side_then_crop``: it covers the input, and what is over is cut off on both sides; ``stretch``:
            to the input's height and width; ``letterbox``: all of it is in the input, with bars of `LETTERBOX_FILL`.
        inputs: of a network of several, in the order of its forward; None for one image.

    Raises:
        InputError: a class has a name that is no line of text, see `is_class_name`; mean and std do not fit the
            channels.
    """

    image_size: ImageSize
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    interpolation: str = "bilinear"
    color_order: ColorOrder = "RGB"
    resize: Resize = "shorter_side_then_crop"
    inputs: tuple[InputShape, ...] | None = None

    def __post_init__(self) -> None:
        if self.inputs is not None:
            if len(self.inputs) < 2 or self.mean or self.std:
                raise InputError("there are two `inputs` or more, which have no mean and std.")
        elif {len(self.mean), len(self.std)} != {self.channels}:
            raise InputError(
                f"mean has {len(self.mean)} and std {len(self.std)} numbers, and an image in {self.color_order} has "
                f"{self.channels} channels: give one for each."
            )
        if wrong := [name for name in self.classes if not is_class_name(name)]:
            raise InputError(
                f"the class `{quoted(wrong[0])}` is not named as one can be: printable characters on one line, "
                "composed ones as Unicode's NFC has them. Rename it in the data set, and make what came of it again."
            )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), pixels."""
        return height_and_width(self.image_size)

    @property
    def channels(self) -> int:
        """Of the input."""
        return channels_of(self.color_order)

    @property
    def of_rgb(self) -> tuple[tuple[float, float, float], ...]:
        """The weights of R, G and B in each channel."""
        unit = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
        return {"RGB": unit, "BGR": unit[::-1], "gray": (GRAY_OF_RGB,)}[self.color_order]

    def shapes(self, batch: int) -> list[tuple[int, ...]]:
        """Of each input: (N, C, H, W) of the image, or what the network's several take."""
        if self.inputs is None:
            return [(batch, self.channels, *self.size)]
        return [(batch, *one.shape) for one in self.inputs]

    def shape(self, batch: int) -> tuple[int, ...]:
        """Of a batch of samples: (N, C, H, W) of images, else (N, numbers); see `samples`."""
        return shape_of(self.shapes(batch))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """The inverse of ``dataclasses.asdict``, also after a trip through JSON."""
        lists = {name: tuple(one) for name, one in values.items() if isinstance(one, list | tuple)}
        several = values.get("inputs") and tuple(
            InputShape(one["name"], tuple(one["shape"])) for one in values["inputs"]
        )
        return cls(**{**values, **lists, "inputs": several or None})


@dataclass(frozen=True)
class ExportSpec:
    """The specification of an exported file: its precision, its input and its preprocessing.

    Attributes:
        precision: ``fp32`` or ``fp16``: the arithmetic inside the file; ``int8``: the program has its own quantize and
            dequantize operations; or a scheme of Core ML's that compresses weights. Input and output are float32.
        input_shape: (N, C, H, W) of the file's input; of several, (N, numbers) of its samples.
        preprocessing: how images become that input.
        options: the backend's own section of target.yaml.
        input_name: of the file's one input.
        output_names: of its outputs, in order.
    """

    precision: str
    input_shape: tuple[int, ...]
    preprocessing: Preprocessing
    options: Mapping[str, Any] = field(default_factory=dict)
    input_name: str = "image"
    output_names: tuple[str, ...] = ("logits",)

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """The shape of each input of the file by its name, in order."""
        several = self.preprocessing.inputs
        if several is None:
            return {self.input_name: self.input_shape}
        return {one.name: (self.input_shape[0], *one.shape) for one in several}


@dataclass(frozen=True)
class Unavailable:
    """A runtime that cannot be used on this machine.

    Attributes:
        reason: what is missing, in one sentence.
        remedy: what to do about it.
    """

    reason: str
    remedy: str


def versions(*packages: str) -> dict[str, str | None]:
    """Installed version of each distribution, None where it is not installed. Imports none of them."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def is_class_name(name: str) -> bool:
    """Whether a class can have a name: it is a line of labels.txt, and compared with others as text.

    It is not empty, printable, spaces included, and in Unicode's normal form NFC.
    """
    return bool(name) and name.isprintable() and unicodedata.is_normalized("NFC", name)


def version_numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: (2, 14, 1) of ``2.14.1+cu130``. To compare versions by."""
    return tuple(int(number) for number in re.match(r"[\d.]*", version)[0].split(".") if number)


def is_within(version: str, wanted: str) -> bool:
    """Whether a version is in a range of ``>=`` and ``<``, which is all that pyproject.toml declares."""
    bounds = [re.match(r"(>=|<)\s*([\d.]+)$", bound.strip()) for bound in wanted.split(",") if bound.strip()]
    return all(
        (version_numbers(version) >= version_numbers(bound[2])) is (bound[1] == ">=") for bound in bounds if bound
    )


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document as every JSON artifact is written: indented, keys in the order given, NaN refused."""
    path.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON artifact."""
    return json.loads(path.read_text())


def as_plain(value: Any) -> dict[str, Any]:
    """A dataclass as JSON types."""
    return json.loads(json.dumps(asdict(value)))
