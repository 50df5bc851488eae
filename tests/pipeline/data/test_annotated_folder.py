"""Folders of masks, of COCO's boxes and of pairs: read, split, and refused where something does not fit."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config.stages import SplitSettings
from pipeline.data import splits, training_batches
from pipeline.errors import InputError
from pipeline.stages import split

SIDE = 24
TASKS = {"masks": "segmentation", "coco": "detection", "pairs": "restoration"}


def fill(root: Path, count: int = 10) -> Path:
    """Bright rectangles on noise: as images, masks, COCO's annotations, and pairs of half the size and the whole."""
    draw = np.random.default_rng(0)
    document = {"categories": [{"id": 7, "name": "box"}], "images": [], "annotations": []}
    for folder in ("images/deep", "masks/deep", "low", "high"):
        (root / folder).mkdir(parents=True)
    for number in range(count):
        pixels = draw.integers(0, 90, (SIDE, 2 * SIDE, 3)).astype(np.uint8)
        x, y, wide, high = (int(one) for one in (*draw.integers(0, 8, 2), *draw.integers(6, 14, 2)))
        pixels[y : y + high, x : x + wide] = 250
        name = f"deep/{number}" if number % 3 else str(number)
        Image.fromarray(pixels).save(root / "images" / f"{name}.png")
        mask = np.zeros(pixels.shape[:2], np.uint8)
        mask[y : y + high, x : x + wide] = 1
        mask[-1] = 255
        Image.fromarray(mask).save(root / "masks" / f"{name}.png")
        Image.fromarray(pixels).save(root / "high" / f"{number}.png")
        Image.fromarray(pixels).resize((SIDE, SIDE // 2)).save(root / "low" / f"{number}.png")
        document["images"].append({"id": number, "file_name": f"{name}.png", "width": 2 * SIDE, "height": SIDE})
        document["annotations"].append({"image_id": number, "category_id": 7, "bbox": [x, y, wide, high]})
    document["annotations"].append({"image_id": 0, "category_id": 7, "bbox": [-5, 3, 4, 4]})
    (root / "annotations.json").write_text(json.dumps(document))
    return root


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("annotated"))


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPNETS_STORE", str(tmp_path_factory.mktemp("store")))
        yield


def fixed(name: str, root: Path, output: Path, **changed) -> splits.Split:
    values = {"classes": 2} if name == "masks" else {"scale": 2} if name == "pairs" else {}
    values |= {"name": name, "root": str(root), "val_fraction": 0.3, "split_seed": 0, "used_for": TASKS[name]}
    split.run(SplitSettings(**values | changed), output=output)
    return splits.open_split(output)


@pytest.mark.parametrize("name", TASKS)
def test_each_image_comes_with_what_is_known_of_it(name, filled, tmp_path, capsys):
    made = fixed(name, filled, tmp_path / "split.json")
    assert (made.size("train"), made.size("val")) == (7, 3)
    how = made.preprocessing((SIDE, 2 * SIDE) if name != "pairs" else (SIDE // 2, SIDE))
    parts = [list(made.batches("val", how, 2, workers=0))]
    parts.append(list(training_batches.batches(made, how, batch_size=7, seed=0, epoch=0, workers=0)))
    assert sum(len(images) for images, _ in parts[0]) == 3
    for images, targets in (batch for part in parts for batch in part):
        mean, std = (torch.tensor(one).view(3, 1, 1) for one in (how.mean, how.std))
        pixels = images * std + mean
        bright = pixels.amin(1) > 0.9
        for number, (light, target) in enumerate(zip(bright, targets, strict=True)):
            rows, columns = light.nonzero().unbind(1)
            if name == "masks":
                assert bool((target[light & (target != 255)] == 1).all()) and bool((target[~light] != 1).all())
            elif name == "coco":
                seen = [0, columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert target[target[:, 0] >= 0].tolist() == [[float(one) for one in seen]]
            else:
                assert target.shape == (3, SIDE, 2 * SIDE)
                small = torch.nn.functional.avg_pool2d(target[None], 2)[0]
                assert float((small - pixels[number]).abs().mean()) < 0.06
    if name == "coco":
        assert "1 boxes are empty or outside of their image" in capsys.readouterr().out and made.classes == ("box",)


def broken(root: Path, folder: Path) -> Path:
    return Path(shutil.copytree(root, folder / "copy"))


def rewritten(root: Path, change) -> None:
    document = json.loads((root / "annotations.json").read_text())
    change(document)
    (root / "annotations.json").write_text(json.dumps(document))


def small_mask(root: Path) -> None:
    Image.new("L", (9, 9)).save(root / "masks" / "0.png")


def colours(root: Path) -> None:
    Image.new("RGB", (2 * SIDE, SIDE)).save(root / "masks" / "0.png")


def another_class(root: Path) -> None:
    Image.new("L", (2 * SIDE, SIDE), 5).save(root / "masks" / "0.png")


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("masks", small_mask, r"masks/0.png has 9 x 9 pixels and its image 24 x 48"),
        ("masks", another_class, r"masks/0.png has the class 5, and there are 2, from 0 to 1"),
        ("masks", colours, r"masks/0.png cannot be decoded: it has the mode RGB, and a mask has one channel"),
        (
            "masks",
            lambda root: (root / "masks/0.png").unlink(),
            r"images/0 has no file of that name in .*masks; 1 such",
        ),
        ("pairs", lambda root: (root / "low/4.png").unlink(), r"high/4 has no file of that name in .*low"),
        ("coco", lambda root: (root / "images/0.png").unlink(), r"names 1 images that are not in .*images, 0.png"),
        ("coco", lambda root: rewritten(root, lambda one: one.pop("categories")), "as COCO has them for detection"),
        (
            "coco",
            lambda root: rewritten(root, lambda one: one["images"][0].update(file_name="../../etc/passwd")),
            "names the file images/../../etc/passwd",
        ),
        (
            "coco",
            lambda root: rewritten(root, lambda one: one["annotations"].clear()),
            "none of the 3 validation images",
        ),
        (
            "coco",
            lambda root: (root / "annotations.json").unlink(),
            "No such file or directory. Put COCO's annotations",
        ),
    ],
)
def test_what_does_not_fit_is_named(name, damage, said, filled, tmp_path):
    root = broken(filled, tmp_path)
    damage(root)
    with pytest.raises(InputError, match=said):
        fixed(name, root, tmp_path / "split.json")


@pytest.mark.parametrize(
    ("name", "file"), [("masks", "masks/0.png"), ("pairs", "high/0.png"), ("coco", "annotations.json")]
)
def test_what_changed_since_the_split_is_noticed(name, file, filled, tmp_path):
    root = broken(filled, tmp_path)
    made = fixed(name, root, tmp_path / "split.json")
    whole = splits.replace(made, parts={"train": (), "val": tuple(range(10))})
    (root / file).write_bytes((root / file).read_bytes() + b" ")
    how = made.preprocessing((SIDE, 2 * SIDE))
    with pytest.raises(InputError, match=r"not the (image|file) that the split was made from"):
        list(splits.new_split(
            whole.name, whole.root, whole.classes, whole.sources, (), whole.parts, whole.use, whole.beside
        ).batches("val", how, 2, workers=0))  # fmt: skip
