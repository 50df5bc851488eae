"""One image file as pixels: depths, formats, limits."""

import os

import numpy as np
import pytest
from PIL import Image

from pipeline.data import image_file
from pipeline.errors import InputError

GRAY = np.add.outer(np.arange(16), np.arange(16) * 15).astype(np.uint8)  # 0 to 240


def deep(kind, path):
    """The picture GRAY in more than 8 bits."""
    wide = GRAY.astype(np.uint16) * 257
    if kind == "pgm":
        path.write_bytes(b"P5\n16 16\n65535\n" + wide.astype(">u2").tobytes())
    else:
        values = {"float": (GRAY / 255).astype(np.float32), "int32": wide.astype(np.int32)}.get(kind, wide)
        Image.fromarray(values).save(path)


@pytest.mark.parametrize("kind, suffix", [("16-bit", "png"), ("16-bit", "tif"), ("pgm", "pgm"), ("int32", "tif"),
                                          ("float", "tif")])  # fmt: skip
def test_an_image_of_more_than_8_bits_keeps_its_range(tmp_path, kind, suffix):
    path = tmp_path / f"deep.{suffix}"
    deep(kind, path)
    read = image_file.read(path)
    assert read.shape == (3, 16, 16)
    assert (read == read[:1]).all()
    np.testing.assert_array_equal(read[0].numpy(), GRAY)
    assert image_file.inspect(path) == image_file.Traits(is_deep=True, is_rotated=False)


def test_no_level_of_16_bits_is_lost(tmp_path):
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)  # 12 bits, as cameras and X-ray detectors write them
    Image.fromarray(values).save(tmp_path / "12-bit.png")
    assert len(np.unique(image_file.read(tmp_path / "12-bit.png")[0])) == 4096


@pytest.mark.parametrize("values", [[0, 2.5], [-0.1, 1], [0, np.nan]])
def test_a_float_image_of_another_range_is_refused(tmp_path, values):
    Image.fromarray(np.array([values], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="must lie within 0 to 1, so that all images of a data set are scaled alike"):
        image_file.read(tmp_path / "a.tif")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_of_8_bits_is_rgb(tmp_path, mode):
    suffix = "png" if mode in ("1", "L", "LA", "P", "RGB", "RGBA") else "tif"
    if mode == "PA":
        mode, suffix = "P", "gif"
    Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode).save(tmp_path / f"a.{suffix}")
    read = image_file.read(tmp_path / f"a.{suffix}")
    assert read.shape == (3, 4, 5)
    assert str(read.dtype) == "torch.uint8"
    assert (read == 255).all()


def test_eps_starts_no_program(tmp_path, monkeypatch):
    started = tmp_path / "started"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {started}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(InputError, match="its content is no image of the formats BMP, GIF, JPEG"):
        image_file.read(tmp_path / "a.png")
    assert not started.exists()


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path):
    Image.new("1", (10_000, 5_001)).save(tmp_path / "bomb.png")
    with pytest.raises(InputError, match="has 10000 x 5001 pixels, and 50,000,000 are the most"):
        image_file.read(tmp_path / "bomb.png")


def test_an_exif_rotation_is_seen_and_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert image_file.read(tmp_path / "a.jpg").shape == (3, 4, 6)
    assert image_file.inspect(tmp_path / "a.jpg").is_rotated


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(InputError, match="is no regular file"):
        image_file.read(tmp_path / "a.png")
