"""One image file as pixels: by a list of formats, within a limit of pixels, with its whole range of values.

An image of 8 bits a channel is converted to RGB. One of more bits (gray, 16-bit or float) keeps its range: the
values of an integer image are divided by 257, so that 65535 is white; those of a float image lie in [0, 1] and are
multiplied by 255. These pixels are float32, so that no level is lost. An EXIF rotation is not applied.
"""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pipeline import regular_file
from pipeline.errors import InputError, quoted, shown

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL.Image import Image

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of the formats that are read. EPS, which starts another program, is not among them."""

MAX_PIXELS = 50_000_000
"""Of an image; float32 RGB of that many takes 600 MB."""

_ORIENTATION = 0x0112  # of EXIF


@dataclass(frozen=True)
class Traits:
    """What a user wants to know of an image that was decoded.

    Attributes:
        is_deep: it has more than 8 bits a channel.
        is_rotated: it has an EXIF rotation, which is not applied.
    """

    is_deep: bool
    is_rotated: bool


@dataclass(frozen=True)
class Header:
    """What the header of an image tells.

    Attributes:
        height, width: pixels.
        is_gray: it has one channel, but for transparency.
    """

    height: int
    width: int
    is_gray: bool


def read(path: Path, sha256: str | None = None) -> "torch.Tensor":
    """Decode an image to RGB.

    Args:
        path: of the image.
        sha256: what its file must have; None to take it as it is.

    Returns:
        (3, H, W): uint8, or float32 in [0, 255] for an image of more than 8 bits a channel.

    Raises:
        InputError: it cannot be decoded, is too large, or is no longer the image that the split was made from.
    """
    return _decoded(path, sha256)[0]


def inspect(path: Path) -> Traits:
    """Decode an image and tell its traits; see `read`, which raises the same."""
    return _decoded(path, None)[1]


def header(path: Path) -> Header:
    """Read the header of an image alone, which takes a tenth of a millisecond.

    Raises:
        InputError: as `read`, where the header shows it; an image that was cut short may have a whole header.
    """
    try:
        regular_file.require(path)
        with path.open("rb") as file, _opened(path, file) as image:
            return Header(image.size[1], image.size[0], _is_gray(image.mode))
    except OSError as error:
        raise InputError(f"{shown(path)} cannot be read: {error.strerror}. Replace the file or delete it.") from None


def content_of(path: Path) -> bytes:
    """The content of an image file. InputError if it cannot be read, or is a pipe or device."""
    try:
        return regular_file.content_of(path)
    except OSError as error:
        raise InputError(
            f"{shown(path)} cannot be read: {error.strerror}. Restore it, or run the stage split again."
        ) from None


def numbers(path: Path, sha256: str | None = None) -> "np.ndarray":
    """The values of an image of one channel as they are, such as a mask: integers (H, W); of a palette its numbers.

    Raises:
        InputError: as `read`; it has several channels, or fractions.
    """
    import numpy as np

    with _opened(path, io.BytesIO(_unchanged(path, sha256))) as image:
        if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;"):
            raise ValueError(
                f"it has the mode {image.mode}, and a mask has one channel of whole numbers, the classes. Convert "
                "colours to numbers first"
            )
        return np.array(image).astype(np.int64)


def _decoded(path: Path, sha256: str | None) -> tuple["torch.Tensor", Traits]:
    import torch

    with _opened(path, io.BytesIO(_unchanged(path, sha256))) as image:
        is_rotated = image.getexif().get(_ORIENTATION, 1) != 1
        is_deep = image.mode in ("I", "F") or image.mode.startswith("I;")
        pixels = _deep(image) if is_deep else _pixels(image)
    return torch.from_numpy(pixels).permute(2, 0, 1), Traits(is_deep, is_rotated)


def _unchanged(path: Path, sha256: str | None) -> bytes:
    """The content of a file, which must have a digest, if one is given."""
    content = content_of(path)
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(
            f"{shown(path)} is not the image that the split was made from; it has changed since. "
            f"Run `python -m pipeline split` again, so that split and data belong together."
        )
    return content


@contextmanager
def _opened(path: Path, file: BinaryIO) -> Iterator["Image"]:
    """An image file of a format and size that is read. What decoding it in the block raises becomes an InputError."""
    from PIL import Image, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = None  # Pillow would only warn; the size is held against our own limit
    try:
        with Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"it has {width} x {height} pixels, and {MAX_PIXELS:,} are the most that is read")
            yield image
            return
    except UnidentifiedImageError:
        is_empty = file.seek(0, io.SEEK_END) == 0
        reason = "it is empty" if is_empty else f"its content is no image of the formats {', '.join(FORMATS)}"
    except Exception as error:  # a decoder may raise anything on a damaged file
        reason = quoted(str(error) or type(error).__name__)
    raise InputError(f"{shown(path)} cannot be decoded: {reason.rstrip('.')}. Replace the file or delete it.")


def _is_gray(mode: str) -> bool:
    return mode in ("1", "L", "LA", "I", "F") or mode.startswith("I;")


def _pixels(image: "Image"):
    import numpy as np

    return np.array(image.convert("RGB"))


def _deep(image: "Image"):
    """float32 (H, W, 3) in [0, 255] of a gray image of more than 8 bits."""
    import numpy as np

    values = np.asarray(image)
    low, high = values.min(), values.max()
    top = 1 if image.mode == "F" else 65535
    if not (low >= 0 and high <= top):
        raise ValueError(
            f"its values are {low:g} to {high:g}, and those of such an image (mode {image.mode}) must lie within "
            f"0 to {top}, so that all images of a data set are scaled alike; scale them and write it again"
        )
    levels = values * np.float32(255) if image.mode == "F" else values / 257.0
    return np.repeat(levels.astype(np.float32)[:, :, None], 3, axis=2)
