"""The way from an image to the network's input, held against torchvision, Pillow and scikit-learn."""

import gzip
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from pipeline.artifacts import digests
from pipeline.artifacts.manifest import Preprocessing
from pipeline.config.stages import SplitSettings
from pipeline.data import datasets, image_folder, splits, training_batches, transforms
from pipeline.errors import InputError
from pipeline.stages import split

CLASSES = ("bird", "cat")


def fix(tmp_path: Path, name: str = "digits", root: Path | None = None, **changed) -> splits.Split:
    values = {"name": name, "root": root and str(root), "val_fraction": 0.25, "split_seed": 0, **changed}
    split.run(SplitSettings(**values), output=tmp_path / "split.json")
    return splits.open_split(tmp_path / "split.json")


def photographs(root: Path, count: int = 4) -> Path:
    """Noise on a slope, of different shapes and formats, so that every pixel tells where it came from."""
    random = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number in range(count):
            height, width = 40 + 7 * number, 61 - 5 * number
            slope = np.linspace(0, 200, width)[None, :, None] + 10 * label
            pixels = (slope + random.integers(0, 40, (height, width, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.{('png', 'bmp')[number % 2]}")
    return root


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("digits")
        patch.setenv("REPNETS_STORE", str(folder / "store"))
        return fix(folder)


def everything(images: splits.Split, part: str, preprocessing: Preprocessing, size: int = 100) -> torch.Tensor:
    return torch.cat([batch for batch, _ in images.batches(part, preprocessing, size, workers=0)])


def test_digits_are_those_of_scikit_learn(digits):
    from sklearn.datasets import load_digits

    reference = load_digits()
    held = digits.images.pixels.double().div(255 / 16)
    assert (held - torch.from_numpy(reference.images[:, None])).abs().max() <= 0.5 / (255 / 16) + 1e-9
    assert digits.images.targets.tolist() == reference.target.tolist()
    assert digits.classes == tuple("0123456789")


def test_the_statistics_of_digits_are_those_of_its_images(digits):
    held = digits.images.pixels.double() / 255
    assert digits.facts.mean == pytest.approx([float(held.mean())] * 3, abs=2e-3)
    assert digits.facts.std == pytest.approx([float(held.std())] * 3, abs=2e-3)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [8, 32, 6])
def test_validation_images_are_what_torchvision_makes_of_them(digits, size, interpolation):
    preprocessing = digits.preprocessing(size, interpolation)
    wanted = v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.Resize(size, interpolation=InterpolationMode(interpolation), antialias=True),
            v2.CenterCrop(size),
            v2.Normalize(list(preprocessing.mean), list(preprocessing.std)),
        ]
    )(digits.images.pixels[list(digits.parts["val"])].expand(-1, 3, -1, -1))
    got = everything(digits, "val", preprocessing)
    assert got.shape == (digits.size("val"), 3, size, size)
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    torch.testing.assert_close(got, wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("part", ["train", "val"])
def test_batches_are_never_augmented(digits, part):
    preprocessing = digits.preprocessing(32, "bilinear")
    torch.manual_seed(0)
    first = everything(digits, part, preprocessing)
    torch.manual_seed(1)
    assert torch.equal(first, everything(digits, part, preprocessing))
    # nor do they depend on how many go together
    assert torch.equal(first, everything(digits, part, preprocessing, size=7))


def test_labels_go_with_their_images(digits):
    labels = torch.cat([labels for _, labels in digits.batches("val", digits.preprocessing(8, "bilinear"), 100)])
    assert labels.dtype == torch.int64
    assert labels.tolist() == [int(digits.images.targets[number]) for number in digits.parts["val"]]


def test_training_sees_every_image_once_and_augmented(digits):
    preprocessing = digits.preprocessing(16, "bilinear")

    def epoch(number: int, **more):
        return list(training_batches.batches(digits, preprocessing, batch_size=32, seed=3, epoch=number, **more))

    plain = torch.cat([images for images, _ in epoch(0, augment=False)])
    known = {row.numpy().tobytes() for row in everything(digits, "train", preprocessing)}
    assert len(plain) == digits.size("train") // 32 * 32
    assert {row.contiguous().numpy().tobytes() for row in plain} <= known
    changed = torch.cat([images for images, _ in epoch(0)])
    assert torch.equal(changed, torch.cat([images for images, _ in epoch(0)]))
    assert not torch.equal(changed, torch.cat([images for images, _ in epoch(1)]))
    inside = [row.contiguous().numpy().tobytes() in known for row in changed]
    assert 0 < sum(inside) < len(inside) / 3  # one in nine is not shifted
    assert changed[:5].is_contiguous(memory_format=torch.channels_last)


def test_processes_share_out_the_batches_of_one(digits):
    preprocessing = digits.preprocessing(16, "bilinear")

    def epoch(**more):
        return list(training_batches.batches(digits, preprocessing, batch_size=64, seed=0, epoch=2, **more))

    for alone, even, odd in zip(epoch(), epoch(rank=0, world=2), epoch(rank=1, world=2), strict=True):
        for whole, one, other in zip(alone, even, odd, strict=True):
            assert torch.equal(whole[0::2], one)
            assert torch.equal(whole[1::2], other)


def test_a_shift_moves_the_image_and_a_flip_mirrors_it():
    images = torch.arange(2 * 64, dtype=torch.float32).view(2, 1, 8, 8)
    moved = transforms.moved(images, torch.tensor([1, 0]), torch.tensor([0, -1]), torch.tensor([False, True]))
    assert torch.equal(moved[0, :, :-1], images[0, :, 1:])
    assert torch.equal(moved[0, :, -1], images[0, :, -2])
    assert torch.equal(moved[1, :, :, :-1], images[1].flip(2)[:, :, 1:])


def test_digits_are_not_mirrored_and_fashion_is():
    assert {name for name, facts in datasets.FACTS.items() if not facts.mirror} == {"digits", "digit_scenes"}


def test_photographs_are_what_pillow_and_torchvision_make_of_them(tmp_path):
    root = photographs(tmp_path / "photographs")
    images = fix(tmp_path, "imagefolder", root)
    assert images.classes == CLASSES
    preprocessing = images.preprocessing(24, "bilinear")
    chain = v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Resize(24), v2.CenterCrop(24)])
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    names = list(images.sources)
    for part in ("train", "val"):
        got = everything(images, part, preprocessing, size=3)
        for tensor, number in zip(got, images.parts[part], strict=True):
            with Image.open(root / names[number]) as image:
                torch.testing.assert_close(tensor, (chain(image) - mean) / std, atol=2e-5, rtol=0)
                # Pillow rounds to whole steps of 1/255, once a direction
                whole = v2.functional.center_crop(v2.functional.resize(image, 24), [24, 24])
            pixels = torch.from_numpy(np.array(whole)).permute(2, 0, 1) / 255
            assert ((tensor * std + mean) - pixels).abs().max() < 1.5 / 255


def test_workers_do_not_change_what_is_read(tmp_path):
    images = fix(tmp_path, "imagefolder", photographs(tmp_path / "photographs"))
    preprocessing = images.preprocessing(24, "bilinear")
    alone, helped = (
        list(training_batches.batches(images, preprocessing, batch_size=3, seed=0, epoch=1, workers=workers))
        for workers in (0, 2)
    )
    assert len(alone) == 2
    for (one, labels), (other, same) in zip(alone, helped, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(labels, same)
    plain = list(
        training_batches.batches(images, preprocessing, batch_size=3, seed=0, epoch=1, workers=0, augment=False)
    )
    assert plain[0][1].tolist() == alone[0][1].tolist()
    assert not torch.equal(plain[0][0], alone[0][0])
    train = [list(images.batches("train", preprocessing, 2, workers=workers)) for workers in (0, 2)]
    assert all(torch.equal(one[0], other[0]) for one, other in zip(*train, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_changed_since_the_split_is_noticed(tmp_path, workers):
    root = photographs(tmp_path / "photographs")
    images = fix(tmp_path, "imagefolder", root)
    victim = root / list(images.sources)[images.parts["val"][0]]
    Image.new("RGB", (30, 30)).save(victim)
    with pytest.raises(InputError, match="is not the image that the split was made from") as error:
        list(images.batches("val", images.preprocessing(24, "bilinear"), 2, workers=workers))
    assert str(victim) in str(error.value)
    assert "Traceback" not in str(error.value)
    victim.unlink()
    with pytest.raises(InputError, match="cannot be read: No such file"):
        list(images.batches("val", images.preprocessing(24, "bilinear"), 2, workers=workers))


def test_validation_images_are_decoded_once_for_every_process_and_network(tmp_path):
    root = photographs(tmp_path / "photographs")
    images = fix(tmp_path, "imagefolder", root)
    first = everything(images, "val", images.preprocessing(24, "bilinear"))
    shutil.rmtree(root)  # from here on they can only come out of the store
    again = splits.open_split(tmp_path / "split.json")
    assert torch.equal(first, everything(again, "val", again.preprocessing(24, "bilinear"), size=1))
    labels = torch.cat([labels for _, labels in again.batches("val", again.preprocessing(24, "bilinear"), 1)])
    assert labels.tolist() == [again.labels[number] for number in again.parts["val"]]
    others = again.preprocessing(24, "bilinear", mean=(0.5, 0.4, 0.3), std=(1, 2, 4))
    mean, std = (torch.tensor(values)[:, None, None] for values in (again.facts.mean, again.facts.std))
    levels = (first * std + mean - torch.tensor(others.mean)[:, None, None]) / torch.tensor(others.std)[:, None, None]
    torch.testing.assert_close(everything(again, "val", others), levels, atol=1e-5, rtol=0)
    for size, interpolation in ((23, "bilinear"), (24, "bicubic")):
        with pytest.raises(InputError, match="cannot be read: No such file"):
            everything(again, "val", again.preprocessing(size, interpolation))


def test_a_part_of_the_validation_images_is_that_part(digits):
    preprocessing = digits.preprocessing(8, "bilinear")
    whole = everything(digits, "val", preprocessing)
    assert torch.equal(everything(digits.share("val", 1, 2), "val", preprocessing), whole[1::2])
    drawn = digits.sample("val", 5)
    rows = [digits.parts["val"].index(number) for number in drawn.parts["val"]]
    assert torch.equal(everything(drawn, "val", preprocessing), whole[rows])


def test_prepared_images_that_were_damaged_are_noticed_and_prepared_again(tmp_path, capsys):
    first = everything(fix(tmp_path), "val", fix(tmp_path).preprocessing(8, "bilinear"))
    (file,) = (tmp_path / "store").glob("objects/*/pixels/pixels.npy")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    images = splits.open_split(tmp_path / "split.json")
    assert torch.equal(first, everything(images, "val", images.preprocessing(8, "bilinear")))
    assert "pixels in the store no longer has the content that was put there" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, array, told",
    [
        ("pixels", np.zeros((450, 3, 8, 8)), r"holds float64 \(450, 3, 8, 8\), and must hold float32"),
        ("pixels", np.zeros((450, 3, 9, 8), np.float32), r"holds float32 \(450, 3, 9, 8\), and must hold float32"),
        ("targets", np.zeros(12, np.int64), r"holds int64 \(12,\), and must hold int64 or float32 \(450,\)"),
        ("targets", np.zeros(450, np.int32), r"holds int32 \(450,\), and must hold int64 or float32 \(450,\)"),
        ("pixels", b"words", "cannot be read as an array"),
    ],
)
def test_an_array_that_something_else_put_into_the_store_is_refused(tmp_path, name, array, told):
    """Its digest was put there too, so that shape and type have to tell."""
    images = fix(tmp_path)
    preprocessing = images.preprocessing(8, "bilinear")
    everything(images, "val", preprocessing)
    (file,) = (tmp_path / "store").glob(f"objects/*/{name}/*.npy")
    if isinstance(array, bytes):
        file.write_bytes(array)
    else:
        np.save(file, array)
    entry = file.parents[1] / "entry.json"
    written = json.loads(entry.read_text())
    written["outputs"][name] = digests.digest(file.parent)
    entry.write_text(json.dumps(written))
    with pytest.raises(InputError, match=told) as error:
        everything(splits.open_split(tmp_path / "split.json"), "val", preprocessing)
    assert f"Delete the folder {file.parents[1]} and run again" in str(error.value)


def idx_files(root: Path, images: int = 6) -> Path:
    """A data set in the format of Fashion-MNIST."""
    root.mkdir()
    random = np.random.default_rng(0)
    for part in ("train", "t10k"):
        pixels = random.integers(0, 256, (images, 28, 28), dtype=np.uint8)
        labels = (np.arange(images) % 10).astype(np.uint8)
        with gzip.open(root / f"{part}-images-idx3-ubyte.gz", "wb") as file:
            file.write(struct.pack(">4I", 2051, images, 28, 28) + pixels.tobytes())
        with gzip.open(root / f"{part}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(struct.pack(">2I", 2049, images) + labels.tobytes())
    return root


def test_a_data_set_with_a_test_part_keeps_it(tmp_path):
    images = fix(tmp_path, "fashion_mnist", idx_files(tmp_path / "fashion"))
    assert images.parts == {"train": tuple(range(6)), "val": tuple(range(6, 12))}
    assert images.classes[9] == "Ankle boot"
    assert everything(images, "val", images.preprocessing(28, "bilinear")).shape == (6, 3, 28, 28)


def test_a_data_set_that_changed_since_the_split_is_noticed(tmp_path):
    root = idx_files(tmp_path / "fashion")
    fix(tmp_path, "fashion_mnist", root)
    with gzip.open(root / "t10k-labels-idx1-ubyte.gz", "ab") as file:
        file.write(b"\0")
    with pytest.raises(InputError, match=r"t10k-labels-idx1-ubyte.gz is not the file that the split was made from"):
        _ = splits.open_split(tmp_path / "split.json").images


def test_a_truncated_data_set_is_named(tmp_path):
    root = idx_files(tmp_path / "fashion")
    whole = (root / "train-images-idx3-ubyte.gz").read_bytes()
    (root / "train-images-idx3-ubyte.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"fashion_mnist cannot be read out of .*fashion: .*Delete the broken file"):
        fix(tmp_path, "fashion_mnist", root)


@pytest.mark.slow
@pytest.mark.skipif(not datasets._DEBIAN_FASHION.exists(), reason="apt-get install dataset-fashion-mnist")
def test_fashion_mnist_of_debian(tmp_path):
    images = fix(tmp_path, "fashion_mnist")
    assert (images.size("train"), images.size("val")) == (60_000, 10_000)
    pixels = images.images.pixels[:60_000].double() / 255
    assert images.facts.mean == pytest.approx([float(pixels.mean())] * 3, abs=1e-3)
    assert images.facts.std == pytest.approx([float(pixels.std())] * 3, abs=1e-3)


def test_what_is_missing_without_a_split(tmp_path):
    with pytest.raises(InputError, match=r"split.json does not exist. Make it with `python -m pipeline split"):
        splits.open_split(tmp_path / "split.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"train": 1}'])
def test_what_is_not_a_split(tmp_path, text):
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(InputError, match="is not a split"):
        splits.open_split(tmp_path / "split.json")


def test_a_split_that_was_edited_is_refused(tmp_path):
    fix(tmp_path)
    document = json.loads((tmp_path / "split.json").read_text())
    document["val"].append(document["train"].pop())
    (tmp_path / "split.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="does not have the digest that it was written with"):
        splits.open_split(tmp_path / "split.json")


def test_a_listing_changes_with_the_files_of_a_folder(tmp_path):
    root = photographs(tmp_path / "photographs")
    first = splits.listing("imagefolder", str(root))
    assert first == splits.listing("imagefolder", str(root))
    (root / "cat" / "0.png").rename(root / "cat" / "9.png")
    second = splits.listing("imagefolder", str(root))
    Image.new("RGB", (9, 9)).save(root / "cat" / "9.png")
    assert len({first, second, splits.listing("imagefolder", str(root))}) == 3
    assert splits.listing("imagefolder", str(tmp_path / "nowhere"))


def test_every_format_is_read_as_rgb(tmp_path):
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    for mode in ("L", "LA", "RGBA", "P", "1"):
        grey.convert(mode).save(tmp_path / f"{mode}.png")
        pixels = image_folder.read(tmp_path / f"{mode}.png")
        assert (pixels.shape, pixels.dtype) == ((3, 8, 8), torch.uint8)
