"""From pixels to the network's input: each step against Pillow or by hand, and the bundle's own code against both."""

import importlib.util
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from pipeline import deploy
from pipeline.artifacts.manifest import LETTERBOX_FILL, Preprocessing
from pipeline.data import transforms
from pipeline.errors import InputError

RESIZES = ("shorter_side_then_crop", "stretch", "letterbox")


@pytest.fixture(scope="module")
def temple() -> np.ndarray:
    """uint8 (200, 301, 3), wider than high and odd."""
    return load_sample_image("china.jpg")[100:300, 200:501].copy()


def how(size, color_order="RGB", resize="shorter_side_then_crop", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), **more):
    channels = 1 if color_order == "gray" else 3
    return Preprocessing(size, mean[:channels], std[:channels], (), color_order=color_order, resize=resize, **more)


def plain(size, color_order="RGB", resize="shorter_side_then_crop", **more):
    """Without mean and std, so that pixels come out in [0, 1]."""
    return how(size, color_order, resize, (0.0,) * 3, (1.0,) * 3, **more)


def prepared(array: np.ndarray, preprocessing: Preprocessing) -> torch.Tensor:
    return transforms.prepare(torch.from_numpy(array).permute(2, 0, 1)[None], preprocessing)


@pytest.mark.parametrize(
    ("resize", "size", "scaled", "box"),
    [
        ("shorter_side_then_crop", 64, (96, 64), (16, 0, 80, 64)),
        ("shorter_side_then_crop", (64, 160), (160, 106), (0, 21, 160, 85)),
        ("shorter_side_then_crop", (160, 64), (240, 160), (88, 0, 152, 160)),
        ("stretch", (64, 160), (160, 64), (0, 0, 160, 64)),
        ("letterbox", (64, 160), (96, 64), (-32, 0, 128, 64)),
        ("letterbox", (160, 64), (64, 43), (0, -58, 64, 102)),
    ],
)
def test_sizes_are_those_of_pillow(temple, resize, size, scaled, box):
    """Scaled and cut as Pillow does it by these numbers, which were worked out by hand; Pillow rounds to 8 bits."""
    image = Image.fromarray(temple).resize(scaled, Image.BILINEAR)
    fill = Image.new("RGB", (box[2] - box[0], box[3] - box[1]), (LETTERBOX_FILL,) * 3)
    fill.paste(image, (-box[0], -box[1]))
    got = prepared(temple, plain(size, resize=resize))[0].permute(1, 2, 0).numpy() * 255
    assert got.shape == (*(size if isinstance(size, tuple) else (size, size)), 3)
    assert np.abs(got - np.asarray(fill, dtype=np.float32)).max() < 1.01


def test_channels_are_in_the_order_of_the_network(temple):
    rgb, bgr, gray = (prepared(temple, plain((40, 60), order)) for order in ("RGB", "BGR", "gray"))
    assert torch.equal(bgr, rgb.flip(1))
    assert gray.shape == (1, 1, 40, 60)
    want = np.asarray(Image.fromarray(temple).convert("L").resize((60, 40), Image.BILINEAR), dtype=np.float32)
    assert np.abs(gray[0, 0].numpy() * 255 - want).max() < 1.51  # rounded twice there


def test_mean_and_std_are_of_the_channels_in_that_order(temple):
    rgb = prepared(temple, plain((40, 60)))
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1)
    torch.testing.assert_close(prepared(temple, how((40, 60), "BGR")), (rgb.flip(1) - mean) / std)


@pytest.mark.parametrize("order", ["RGB", "BGR", "gray"])
def test_a_gray_image_is_the_same_in_each_channel(order):
    pixels = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8) * 4
    preprocessing = plain(8, order)
    assert torch.equal(transforms.prepare(pixels, preprocessing), (pixels / 255).expand(preprocessing.shape(1)))


@pytest.mark.parametrize("order", ["RGB", "BGR", "gray"])
def test_whole_pixels_stay_as_they_are(temple, order):
    exact = prepared(temple, how(temple.shape[:2], order))
    if order == "gray":  # of whole numbers, a weighted mean is none
        exact = transforms.whole(exact, how(temple.shape[:2], order))
    torch.testing.assert_close(transforms.whole(exact, how(1, order)), exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("order", ["RGB", "BGR", "gray"])
@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", [48, (40, 96), (96, 40)])
def test_the_code_of_a_bundle_makes_the_same_input(temple, order, resize, size):
    """integration/network_input.py, which goes to devices, within the rounding of Pillow to 8 bits, of gray twice."""
    file = Path(deploy.__file__).parent / "shipped/network_input.py"
    spec = importlib.util.spec_from_file_location("network_input", file)
    shipped = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shipped)
    preprocessing = how(size, order, resize, interpolation="bicubic")
    fields = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(preprocessing).items()}
    about = {"preprocessing": fields, "input": {"dtype": "float32"}}
    content = shipped.network_input(Image.fromarray(temple), about)
    got = np.array(struct.unpack(f"<{len(content) // 4}f", content)).reshape(preprocessing.shape(1))
    want = prepared(temple, preprocessing).numpy()
    std = np.array(preprocessing.std)[:, None, None]
    inside = np.abs(want * std + np.array(preprocessing.mean)[:, None, None] - 0.5) <= 0.5  # bicubic overshoots
    assert inside.mean() > 0.97
    assert (np.abs(got - want) * std * 255)[inside].max() < (1.6 if order == "gray" else 1.1)


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("order", ["RGB", "gray"])
@pytest.mark.parametrize("augment", [True, False])
def test_training_sees_images_of_the_same_shape(temple, resize, order, augment):
    preprocessing = how((40, 96), order, resize)
    pixels = torch.from_numpy(temple).permute(2, 0, 1)[None]
    seen = transforms.FolderView(preprocessing, augment, mirror=False)(pixels, torch.tensor([0]))[0]
    assert seen.dtype == torch.uint8
    assert seen.shape == preprocessing.shape(1)
    if not augment:  # it is what validation sees, in 8 bits
        want = transforms.resized(pixels, preprocessing) * 255
        assert (seen.float() - want).abs().max() < (2.6 if order == "gray" else 1.1)


def test_images_that_are_no_squares_move_by_whole_pixels():
    images = torch.arange(2 * 16 * 48, dtype=torch.float32).view(2, 1, 16, 48)
    moved = transforms.moved(images, torch.tensor([1, 0]), torch.tensor([0, -2]), torch.tensor([False, True]))
    assert torch.equal(moved[0, :, :-1], images[0, :, 1:])
    assert torch.equal(moved[0, :, -1], images[0, :, -2])  # mirrored into the gap
    assert torch.equal(moved[1].flip(-1)[..., 2:], images[1, ..., :-2])


def test_mean_and_std_fit_the_channels():
    with pytest.raises(InputError, match=r"mean has 3 and std 3 numbers, and an image in gray has 1 channels"):
        Preprocessing(8, (0.5,) * 3, (0.5,) * 3, (), color_order="gray")
