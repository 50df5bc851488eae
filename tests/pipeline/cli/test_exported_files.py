"""Exported files as a user names them: their shape, their manifest, and what they are fed."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pipeline.artifacts.manifest import ExportSpec, Preprocessing
from pipeline.cli import exported_files
from pipeline.data import transforms
from pipeline.data.splits import open_split
from pipeline.errors import InputError
from tests.fixtures.documents import write_manifest

PREPROCESSING = Preprocessing(12, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), ("a", "b", "c", "d"))


def program(path, shape=(1, 3, 12, 12), classes=4, free=()):
    """A saved program of one convolution; the axes in `free` take any size."""
    network = nn.Sequential(nn.Conv2d(shape[1], classes, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    sizes = ({axis: torch.export.Dim.AUTO for axis in free},) if free else None
    torch.export.save(torch.export.export(network, (torch.zeros(shape),), dynamic_shapes=sizes), path)
    return path


def manifest(file, precision="fp32"):
    """The manifest.json beside a file, which describes it."""
    write_manifest(file.parent, "pytorch", {"fused": file}, ExportSpec(precision, (1, 3, 12, 12), PREPROCESSING))


def opened(*paths):
    return [exported_files.open_file(path) for path in paths]


def test_a_file_says_what_it_takes(tmp_path):
    (file,) = opened(program(tmp_path / "a.pt2"))
    assert (file.backend, file.input_shape, file.classes) == ("pytorch", (1, 3, 12, 12), 4)
    assert (file.manifest, file.precision) == (None, "fp32")


def test_the_manifest_beside_a_file_says_the_rest(tmp_path):
    manifest(program(tmp_path / "a.pt2"), "fp16")
    (file,) = opened(tmp_path / "a.pt2")
    assert file.precision == "fp16" and file.manifest.preprocessing == PREPROCESSING


def test_a_manifest_of_other_content_is_not_used(tmp_path, capsys):
    manifest(program(tmp_path / "a.pt2"), "fp16")
    program(tmp_path / "a.pt2", classes=5)
    (file,) = opened(tmp_path / "a.pt2")
    assert (file.manifest, file.precision) == (None, "fp32")
    assert (
        "a.pt2 is not the file that manifest.json beside it describes, so that is not used." in capsys.readouterr().err
    )


def test_a_manifest_of_other_files_is_none(tmp_path, capsys):
    manifest(program(tmp_path / "a.pt2"))
    assert opened(program(tmp_path / "b.pt2"))[0].manifest is None
    assert capsys.readouterr().err == ""


def test_a_damaged_manifest_is_named(tmp_path):
    program(tmp_path / "a.pt2")
    for content in ("{", "{}", '{"forms": 3}'):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(InputError, match=r"manifest\.json is no manifest of this pipeline, or was cut short"):
            opened(tmp_path / "a.pt2")


def test_an_engine_takes_what_its_manifest_says(tmp_path):
    engine = tmp_path / "a.engine"
    engine.write_bytes(b"ftrt" + bytes(20) + bytes((10, 3, 0, 26)))
    assert opened(engine)[0].input_shape == (None,) * 4
    manifest(engine)
    (file,) = opened(engine)
    assert (file.backend, file.input_shape, file.classes) == ("tensorrt", (1, 3, 12, 12), 4)


def test_a_missing_file_is_told_before_anything_is_read(tmp_path):
    with pytest.raises(InputError, match=r"none\.onnx does not exist\. Name an exported file: \.mlpackage, \.pte, "):
        opened(tmp_path / "none.onnx")


def test_what_one_file_fixes_holds_for_all(tmp_path):
    free, fixed = program(tmp_path / "a.pt2", (2, 3, 20, 24), free=(0, 2, 3)), program(tmp_path / "b.pt2")
    assert exported_files.common_shape(opened(free, fixed)) == (1, 3, 12, 12)
    assert exported_files.common_shape(opened(fixed, free)) == (1, 3, 12, 12)


def test_free_sizes_are_those_the_file_was_made_with_or_given(tmp_path):
    files = opened(program(tmp_path / "a.pt2", (2, 3, 20, 24), free=(0, 2, 3)))
    assert exported_files.common_shape(files) == (1, 3, 20, 24)
    assert exported_files.common_shape(files, 16) == (1, 3, 16, 16)


def test_a_size_is_asked_for_where_nothing_says_it(tmp_path):
    (tmp_path / "a.engine").write_bytes(b"ftrt" + bytes(24))
    with pytest.raises(
        InputError, match=r"a\.engine takes images of any size, and nothing says which. Give --image-size"
    ):
        exported_files.common_shape(opened(tmp_path / "a.engine", program(tmp_path / "b.pt2"))[:1])


def test_no_other_size_than_the_files_own(tmp_path):
    with pytest.raises(InputError, match=r"a\.pt2 takes an input of 1 x 3 x 12 x 12 alone. Leave out --image-size"):
        exported_files.common_shape(opened(program(tmp_path / "a.pt2")), 16)


@pytest.mark.parametrize("shape", [(1, 3, 12, 16), (1, 1, 12, 12), (2, 3, 12, 12)])
def test_two_input_shapes_are_named(tmp_path, shape):
    files = opened(program(tmp_path / "a.pt2"), program(tmp_path / "b.pt2", shape))
    said = f"a.pt2 takes an input of 1 x 3 x 12 x 12 and {tmp_path}/b.pt2 one of {' x '.join(map(str, shape))}, so no"
    with pytest.raises(InputError, match=re.escape(said)):
        exported_files.common_shape(files)


def test_two_numbers_of_classes_are_named(tmp_path):
    files = opened(program(tmp_path / "a.pt2"), program(tmp_path / "b.pt2", classes=7))
    with pytest.raises(InputError, match=rf"a\.pt2 gives 4 classes and {re.escape(str(tmp_path))}/b\.pt2 7, so they"):
        exported_files.common_shape(files)


def fed(images):
    return np.concatenate(list(images.pieces()))


def test_random_images_are_the_same_every_time(tmp_path):
    files = opened(program(tmp_path / "a.pt2"))
    images = exported_files.images(files, (1, 3, 12, 12))
    assert images.described == "16 random normal images, seed 0"
    assert fed(images).shape == (16, 3, 12, 12) and fed(images).dtype == np.float32
    assert np.array_equal(fed(images), fed(exported_files.images(files, (4, 3, 12, 12))))
    assert abs(fed(images).std() - 1) < 0.05


def photos(folder, count):
    random = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        Image.fromarray(random.integers(256, size=(20, 30, 3), dtype=np.uint8)).save(folder / f"{number:03}.png")
    return folder


def test_images_of_a_folder_are_prepared_as_the_manifest_says(tmp_path):
    manifest(program(tmp_path / "a.pt2"))
    folder = photos(tmp_path / "photos", 70)
    (folder / "notes.txt").write_text("no image")
    images = exported_files.images(opened(tmp_path / "a.pt2"), (1, 3, 12, 12), folder=folder)
    assert images.described == f"70 images of {folder}"
    assert [len(piece) for piece in images.pieces()] == [64, 6]
    with Image.open(folder / "066.png") as image:
        raw = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    np.testing.assert_array_equal(images.one(66), transforms.prepare(raw, PREPROCESSING)[0].numpy())
    np.testing.assert_array_equal(images.one(66), fed(images)[66])
    with pytest.raises(IndexError):
        images.one(70)


def test_the_size_is_the_files_and_not_that_of_training(tmp_path):
    file = program(tmp_path / "a.pt2", (1, 3, 16, 16))
    manifest(file)
    images = exported_files.images(opened(file), (1, 3, 16, 16), folder=photos(tmp_path / "photos", 1))
    assert fed(images).shape == (1, 3, 16, 16)


def test_without_a_manifest_nobody_knows_how_to_prepare_images(tmp_path):
    files = opened(program(tmp_path / "a.pt2"), program(tmp_path / "b.pt2"))
    with pytest.raises(
        InputError, match=r"in manifest\.json, which lies beside neither .*a\.pt2 nor .*b\.pt2\. Put it"
    ):
        exported_files.images(files, (1, 3, 12, 12), folder=photos(tmp_path / "photos", 1))


def test_a_folder_without_images_is_named(tmp_path):
    manifest(program(tmp_path / "a.pt2"))
    with pytest.raises(InputError, match=r"photos cannot be read: No such file"):
        exported_files.images(opened(tmp_path / "a.pt2"), (1, 3, 12, 12), folder=tmp_path / "photos")
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match=r"photos holds no image \(\.bmp, .*so nothing could be compared"):
        exported_files.images(opened(tmp_path / "a.pt2"), (1, 3, 12, 12), folder=tmp_path / "photos")


def test_a_file_that_takes_pixels_is_fed_such_as_they_are(tmp_path):
    """What it would round is rounded for all files, or it would differ by what an image cannot hold."""
    manifest(program(tmp_path / "a.pt2"))
    files = [replace(opened(tmp_path / "a.pt2")[0], takes_pixels=True)]
    images = exported_files.images(files, (1, 3, 12, 12))
    assert images.described == "16 random normal images, seed 0, in whole pixels"
    mean, std = (np.array(one)[:, None, None] for one in (PREPROCESSING.mean, PREPROCESSING.std))
    levels = (fed(images) * std + mean) * 255
    np.testing.assert_allclose(levels, levels.round(), atol=1e-3)
    assert levels.min() > -0.5 and levels.max() < 255.5
    plain = (fed(exported_files.images(opened(tmp_path / "a.pt2"), (1, 3, 12, 12))) * std + mean) * 255
    assert np.abs(levels - plain.clip(0, 255)).max() < 0.501


def test_images_are_as_high_and_as_wide_as_the_file_takes_them(tmp_path):
    manifest(program(tmp_path / "a.pt2", (1, 3, 12, 16)))
    folder = photos(tmp_path / "photos", 2)
    found = exported_files.images(opened(tmp_path / "a.pt2"), (1, 3, 12, 16), folder=folder)
    assert fed(found).shape == (2, 3, 12, 16)


@pytest.mark.parametrize("described", [True, False])
def test_validation_images_of_a_split(artifacts, tmp_path, described):
    split = open_split(artifacts.split)
    preprocessing = split.preprocessing(12, "bilinear")
    program(tmp_path / "a.pt2")
    if described:
        preprocessing = PREPROCESSING
        manifest(tmp_path / "a.pt2")
    images = exported_files.images(opened(tmp_path / "a.pt2"), (1, 3, 12, 12), split=artifacts.split)
    assert images.described == f"{split.size('val')} validation images of {artifacts.split}"
    want = torch.cat([batch for batch, _ in split.batches("val", preprocessing, 256)])
    np.testing.assert_allclose(fed(images), want.numpy(), atol=1e-6)


def test_what_is_no_split_is_named(tmp_path):
    (tmp_path / "split.json").write_text(json.dumps({"name": "digits"}))
    with pytest.raises(InputError, match=r"split\.json is not a split"):
        exported_files.images(opened(program(tmp_path / "a.pt2")), (1, 3, 12, 12), split=tmp_path / "split.json")
