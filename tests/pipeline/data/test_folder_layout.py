"""Layouts of image folders: which are recognised, and which are refused."""

import os

import pytest

from pipeline.data import folder_layout, image_folder
from pipeline.errors import InputError


def fill(root, *folders):
    """A file named like an image in each folder; scanning opens none."""
    for name in folders:
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / "1.png").touch()
    return root


def classes_in(*parts):
    return [f"{part}/{name}" for part in parts for name in ("cat", "dog")]


@pytest.mark.parametrize(
    "train, val",
    [("training", "validation"), ("Train", "Val"), ("TRAIN", "TEST"), ("seg_train/seg_train", "seg_test/seg_test"),
     ("train", "valid"), ("train", "validation"), ("train", "test"), ("training_set/training_set", "test_set/test_set"),
     ("Training", "Testing"), ("train2017", "val2017"), ("train_images", "val_images"), ("train", "dev")],
)  # fmt: skip
def test_parts_by_other_names_are_parts(tmp_path, train, val):
    tree = image_folder.scan(fill(tmp_path, *classes_in(train, val)))
    assert tree.classes == ("cat", "dog")
    held = [name for name, is_val in zip(tree.images, tree.own_val, strict=True) if is_val]
    assert held == [f"{val}/{name}/1.png" for name in ("cat", "dog")]
    assert tree.labels == (0, 1, 0, 1)
    assert bool(tree.notes) is ("test" in val.lower())


def test_with_a_validation_part_the_test_part_is_said_to_be_unused(tmp_path):
    tree = image_folder.scan(fill(tmp_path, *classes_in("train", "valid", "test"), "seg_pred"))
    assert sum(tree.own_val) == 2
    assert tree.notes == ("seg_pred/ is not used", "test/ is not used")


def test_a_test_part_without_classes_is_said_to_be_unused(tmp_path):
    tree = image_folder.scan(fill(tmp_path, *classes_in("train"), "test"))
    assert tree.own_val is None
    assert tree.notes == ("test/ is not used",)


@pytest.mark.parametrize("names", [("bus", "car", "train"), ("control", "test"), ("cat", "dog"), ("trainer", "valve")])
def test_classes_may_be_called_like_parts(tmp_path, names):
    assert image_folder.scan(fill(tmp_path, *names)).classes == names


@pytest.mark.parametrize(
    "folders, told",
    [
        (["train", "valid"], "name parts of a data set and not classes, but no training part"),
        (classes_in("val", "test"), "name parts of a data set and not classes, but no training part"),
        ([*classes_in("train"), "val"], "val holds images but no class folders"),
        (classes_in("train", "Training"), "Training and train, which both name the same part"),
        (classes_in("train", "val", "valid"), "val and valid, which both name the same part"),
        ([*classes_in("train"), "bus"], "train may be a part of the data set or a class"),
    ],
)
def test_what_is_neither_parts_nor_classes_is_refused(tmp_path, folders, told):
    with pytest.raises(InputError, match=told):
        image_folder.scan(fill(tmp_path, *folders))


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_a_link_that_climbs_is_refused(tmp_path, target):
    fill(tmp_path, "images/a", "images/b")
    os.symlink(target, tmp_path / "images/a/loop")
    with pytest.raises(InputError, match=r"leads back to a folder that it lies in|images/a/loop/a"):
        image_folder.scan(tmp_path / "images")


def test_a_link_to_another_folder_is_followed(tmp_path):
    fill(tmp_path, "elsewhere", "images/b")
    os.symlink("../elsewhere", tmp_path / "images/a")
    assert image_folder.scan(tmp_path / "images").images == ("a/1.png", "b/1.png")


@pytest.mark.parametrize("name, shown", [(b"a\xff", r"a\\udcff"), (b"a\nb", r"a\\nb")])
@pytest.mark.parametrize("where", ["file", "folder"])
def test_a_name_that_cannot_be_printed_is_refused(tmp_path, name, shown, where):
    fill(tmp_path, "a", "b")
    place = os.fsencode(tmp_path) + (b"/a/" + name + b".png" if where == "file" else b"/" + name)
    if where == "folder":
        os.mkdir(place)
        place += b"/1.png"
    open(place, "w").close()
    with pytest.raises(InputError, match=rf"{shown}.* is not UTF-8 or not printable"):
        image_folder.scan(tmp_path)


def test_what_cannot_be_listed_is_named(tmp_path):
    with pytest.raises(InputError, match="gone cannot be read: No such file"):
        list(folder_layout.files_in(tmp_path / "gone"))


def test_a_class_is_named_in_composed_characters_however_the_folder_is(tmp_path):
    composed, apart = "gr\xfcn", "gru\u0308n"
    fill(tmp_path, f"train/{apart}", "train/a b; $(c)", f"val/{composed}")
    tree = image_folder.scan(tmp_path, [composed, "a b; $(c)"])
    assert tree.classes == (composed, "a b; $(c)") and sorted(tree.labels) == [0, 0, 1]
    assert f"train/{apart}/1.png" in tree.images
    fill(tmp_path, f"train/{composed}")
    with pytest.raises(InputError, match="has two class folders"):
        image_folder.scan(tmp_path)
