"""The stage split on real folders of real image files, good and broken."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config.stages import SplitSettings
from pipeline.data import splits, training_batches
from pipeline.errors import InputError
from pipeline.stages import split

PROJECT = Path(__file__).resolve().parents[3]


def settings(name: str = "imagefolder", root: Path | None = None, **changed) -> SplitSettings:
    return SplitSettings(**{"name": name, "root": root and str(root), "val_fraction": 0.2, "split_seed": 0} | changed)


def fill(root: Path, *classes: str, count: int = 5, seed: int = 0) -> Path:
    """Small noise images in class folders."""
    random = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (12, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def fixed(tmp_path: Path, of: SplitSettings) -> splits.Split:
    split.run(of, output=tmp_path / "split.json")
    return splits.open_split(tmp_path / "split.json")


def test_the_parts_are_disjoint_whole_and_stratified(tmp_path):
    made = fixed(tmp_path, settings("digits"))
    train, val = (set(made.parts[part]) for part in ("train", "val"))
    assert not train & val
    assert train | val == set(range(1797))
    labels = made.images.targets.tolist()
    everything, held = Counter(labels), Counter(labels[number] for number in val)
    assert all(held[label] == round(0.2 * count) for label, count in everything.items())


def test_the_split_is_fixed_by_its_seed(tmp_path, monkeypatch):
    first = fixed(tmp_path, settings("digits"))
    kept = (tmp_path / "split.json").read_bytes()
    monkeypatch.setenv("REPNETS_STORE", str(tmp_path / "another"))
    fixed(tmp_path, settings("digits"))
    assert (tmp_path / "split.json").read_bytes() == kept
    other = fixed(tmp_path, settings("digits", split_seed=1))
    assert other.digest != first.digest
    assert set(other.parts["val"]) != set(first.parts["val"])
    assert len(fixed(tmp_path, settings("digits", val_fraction=0.5)).parts["val"]) == pytest.approx(1797 / 2, abs=10)


def test_the_second_time_it_comes_out_of_the_store(tmp_path, capsys):
    root = fill(tmp_path / "images", "a", "b")
    first = fixed(tmp_path, settings(root=root))
    assert "split: built" in capsys.readouterr().out
    os.utime(root / "a" / "0.png")
    assert fixed(tmp_path, settings(root=root)) == first
    assert "split: from the store" in capsys.readouterr().out


def test_the_digest_changes_with_the_content_alone(tmp_path):
    root = fill(tmp_path / "images", "a", "b")
    first = fixed(tmp_path, settings(root=root))
    shutil.copytree(root, tmp_path / "moved")
    assert fixed(tmp_path, settings(root=tmp_path / "moved")).digest == first.digest
    stood = (root / "a" / "0.png").stat()
    Image.new("RGB", (12, 10)).save(root / "a" / "0.png")
    os.utime(root / "a" / "0.png", ns=(stood.st_atime_ns, stood.st_mtime_ns))
    changed = fixed(tmp_path, settings(root=root))
    assert changed.digest != first.digest
    assert changed.parts == first.parts


def test_new_images_do_not_move_the_old_ones(tmp_path):
    root = fill(tmp_path / "images", "a", "b", count=20)
    first = fixed(tmp_path, settings(root=root))
    before = {list(first.sources)[number] for number in first.parts["val"]}
    shutil.copy(root / "a" / "0.png", root / "a" / "new.png")
    second = fixed(tmp_path, settings(root=root))
    after = {list(second.sources)[number] for number in second.parts["val"]}
    assert before - {"a/new.png"} <= after | {max(before - after, default="")}
    assert len(before - after) <= 1


def test_train_and_val_folders_are_kept(tmp_path):
    root = tmp_path / "images"
    fill(root / "train", "cat", "dog")
    fill(root / "val", "cat", "dog", count=2, seed=1)
    made = fixed(tmp_path, settings(root=root))
    assert made.classes == ("cat", "dog")
    assert (made.size("train"), made.size("val")) == (10, 4)
    names = list(made.sources)
    assert all(names[number].startswith("val/") for number in made.parts["val"])
    assert [made.labels[number] for number in made.parts["val"]] == [0, 0, 1, 1]


def test_a_train_folder_alone_is_split(tmp_path):
    fill(tmp_path / "images" / "train", "cat", "dog")
    made = fixed(tmp_path, settings(root=tmp_path / "images"))
    assert (made.classes, made.size("train"), made.size("val")) == (("cat", "dog"), 8, 2)


def test_images_deeper_in_a_class_folder_are_of_its_class(tmp_path):
    root = fill(tmp_path / "images", "cat", "dog", "dog/small")
    made = fixed(tmp_path, settings(root=root))
    assert made.classes == ("cat", "dog")
    assert Counter(made.labels) == {0: 5, 1: 10}


def test_other_files_are_counted_and_hidden_ones_left_out(tmp_path, capsys):
    root = fill(tmp_path / "images", "a", "b")
    (root / "a" / "notes.txt").write_text("no image")
    (root / "a" / ".thumbnail.png").write_text("no image")
    assert len(fixed(tmp_path, settings(root=root)).sources) == 10
    assert "1 files are not images and are not used" in capsys.readouterr().out


def test_images_that_are_in_both_parts_are_told(tmp_path, capsys):
    root = tmp_path / "images"
    fill(root / "train", "cat", "dog")
    fill(root / "val", "cat", "dog")
    split.run(settings(root=root), output=tmp_path / "split.json")
    assert "warning: 10 validation images are also in the train part" in capsys.readouterr().err


def broken(root: Path, how: str) -> None:
    """Make a good folder one that must be refused."""
    if how == "missing":
        shutil.rmtree(root)
    elif how == "empty":
        shutil.rmtree(root)
        root.mkdir()
    elif how == "one class":
        shutil.rmtree(root / "b")
    elif how == "empty class":
        (root / "c").mkdir()
    elif how == "loose image":
        shutil.copy(root / "a" / "0.png", root / "stray.png")
    elif how == "one image":
        for path in (root / "b").iterdir():
            if path.name != "0.png":
                path.unlink()
    elif how == "no image":
        (root / "b" / "3.png").write_text("this is not an image")
    elif how == "empty image":
        (root / "b" / "3.png").write_bytes(b"")
    elif how == "truncated image":
        whole = (root / "b" / "3.png").read_bytes()
        (root / "b" / "3.png").write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "images is not a folder. Name the folder that holds one folder of images per class"),
        ("empty", "images holds no images .*Put the images of each class into a folder of its own"),
        ("one class", "holds one class folder, `a`, and a classifier needs two or more"),
        ("empty class", "the class folder .*images/c holds no image"),
        ("loose image", "images/stray.png lies in no class folder"),
        ("one image", "class `b` has 1 image, so none can be held out"),
        (
            "no image",
            "images/b/3.png cannot be decoded: its content is no image of the formats .*WEBP. Replace the file",
        ),
        ("empty image", "images/b/3.png cannot be decoded: it is empty"),
        ("truncated image", "images/b/3.png cannot be decoded: .*truncated.* Replace the file or delete it"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(tmp_path, how, message):
    root = fill(tmp_path / "images", "a", "b")
    broken(root, how)
    with pytest.raises(InputError, match=message):
        split.run(settings(root=root), output=tmp_path / "split.json")
    assert not (tmp_path / "split.json").exists()


def test_all_broken_images_are_named_at_once(tmp_path):
    root = fill(tmp_path / "images", "a", "b", count=20)
    for number in range(12):
        (root / "b" / f"{number}.png").write_bytes(b"GIF89a" if number % 2 else b"")
    with pytest.raises(InputError) as error:
        split.run(settings(root=root), output=tmp_path / "split.json")
    assert str(error.value).count("cannot be decoded") == 10
    assert str(error.value).endswith("And 2 more.")


def test_deep_and_rotated_images_and_parts_that_are_not_used_are_told(tmp_path, capsys):
    root = tmp_path / "images"
    fill(root / "train", "cat", "dog")
    fill(root / "Test", "cat", "dog")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (9, 9)).save(root / "train" / "cat" / "turned.jpg", exif=exif)
    Image.fromarray(np.full((9, 9), 514, np.uint16)).save(root / "train" / "dog" / "deep.png")
    made = fixed(tmp_path, settings(root=root))
    said = capsys.readouterr().out
    assert "Test/ is the validation part, since there is no other" in said
    assert "1 images have more than 8 bits a channel: integers are divided by 257" in said
    assert "1 images have an EXIF rotation, which is not applied" in said
    preprocessing = made.preprocessing(9, "bilinear", mean=(0, 0, 0), std=(1, 1, 1))
    batches = training_batches.batches(made, preprocessing, batch_size=12, seed=0, epoch=0, augment=False, workers=0)
    (images, _), *_ = batches
    assert ((images == 2 / 255).all(dim=(1, 2, 3))).sum() == 1


def test_the_order_of_the_classes_can_be_set(tmp_path):
    root = fill(tmp_path / "images", "c1", "c10", "c2")
    (tmp_path / "index.json").write_text(json.dumps({"c2": 0, "c10": 1, "c1": 2}))
    first = fixed(tmp_path, settings(root=root))
    named = fixed(tmp_path, settings(root=root, classes=str(tmp_path / "index.json")))
    assert (first.classes, named.classes) == (("c1", "c10", "c2"), ("c2", "c10", "c1"))
    assert named.labels == tuple(2 - label for label in first.labels)
    assert named.parts == first.parts
    assert fixed(tmp_path, settings(root=root, classes="natural")).classes == ("c1", "c2", "c10")


@pytest.mark.parametrize("change", ["a new image", "another index", "a loop"])
def test_the_listing_tells_that_a_folder_changed_and_never_fails(tmp_path, change):
    root, index = fill(tmp_path / "images", "a", "b"), tmp_path / "index.json"
    index.write_text('["a", "b"]')
    (root / "a" / "caf\udce9.png").touch()
    before = splits.listing("imagefolder", str(root), str(index))
    assert splits.listing("imagefolder", str(root), str(index)) == before
    if change == "a new image":
        (root / "a" / "new.png").touch()
    elif change == "another index":
        index.write_text('["b", "a"] ')
    else:
        (root / "a" / "loop").symlink_to("..")
    assert splits.listing("imagefolder", str(root), str(index)) != before


def test_a_class_that_train_does_not_have_is_refused(tmp_path):
    fill(tmp_path / "images" / "train", "cat", "dog")
    fill(tmp_path / "images" / "val", "cat", "cow")
    with pytest.raises(InputError, match="val/cow is a class that train/ does not have; train/ has cat, dog"):
        split.run(settings(root=tmp_path / "images"), output=tmp_path / "split.json")


def test_the_command_line_names_the_file_and_exits_with_2(tmp_path):
    root = fill(tmp_path / "images", "a", "b")
    broken(root, "no image")
    words = ["--settings", settings(root=root).model_dump_json(), "--output", str(tmp_path / "split.json")]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "split", *words],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "b/3.png cannot be decoded" in done.stderr
    assert "Traceback" not in done.stderr
    assert "split: decoding 10 images" in done.stdout


def test_split_json_is_plain(tmp_path):
    fixed(tmp_path, settings("digits"))
    document = json.loads((tmp_path / "split.json").read_text())
    assert document["sizes"] == {"train": 1438, "val": 359}
    assert list(document["sources"]) == ["digits.csv.gz"]
