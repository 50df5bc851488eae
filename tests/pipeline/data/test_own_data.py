"""A data set of the user's own: read, split, held against its digests; its faults are told as the user's."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import backends
from pipeline.data import own_data, splits, training_batches
from pipeline.errors import InputError
from pipeline.models import resolve
from pipeline.stages import split
from pipeline.stages.settings import settings_of
from tests.fixtures import own_code
from tests.fixtures.own_data import DATA

DOCS = Path(__file__).parents[3] / "docs" / "tasks.md"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder of the user's own, in which the stages run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REPNETS_STORE", str(tmp_path / "store"))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mydata.py").write_text(DATA)
    own_code.forget("mydata", folder=tmp_path)
    yield tmp_path
    own_code.forget(folder=tmp_path)


def changed(project: Path, old: str, new: str) -> None:
    text = (project / "mydata.py").read_text()
    assert old in text
    (project / "mydata.py").write_text(text.replace(old, new))
    own_code.forget(folder=project)


def fixed(project: Path, **data) -> splits.Split:
    values = {"name": "mydata:Screws", "task": "detection", "classes": ["screw"], "image_size": [40, 60]} | data
    config = resolve.load({"data": values, "models": {"toy_detector": {"image_size": [48, 64]}}}, backends.rules())
    split.run(settings_of("split", config), output=project / "split.json")
    return splits.open_split(project / "split.json")


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_and_targets_are_those_that_its_code_gives(project, workers):
    made = fixed(project)
    assert (made.size("train"), made.size("val"), made.classes, made.kind) == (32, 8, ("screw",), "boxes")
    how = made.preprocessing((40, 60), mean=(0, 0, 0), std=(1, 1, 1))
    ((images, boxes),) = made.batches("val", how, 8, workers)
    assert images.shape == (8, 3, 40, 60) and boxes.shape == (8, 1, 5)
    for image, (box,) in zip(images, boxes, strict=True):
        rows, columns = (image.amin(0) > 0.9).nonzero().unbind(1)
        assert box.tolist() == [0, columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    (one, two) = training_batches.batches(made, how, batch_size=16, seed=0, epoch=0, workers=workers)
    assert len(one[0]) == len(two[1]) == 16 and not torch.equal(one[0], two[0])


def test_boxes_of_other_numbers_share_a_batch(project):
    changed(project, "return picture, [[0,", "return picture, [] if number % 2 else [[0,")
    made = fixed(project)
    ((_, boxes),) = made.batches("val", made.preprocessing((40, 60)), 8, 0)
    assert boxes[:, 0, 0].tolist() == [0, -1] * 4


def test_what_is_random_or_changed_is_noticed(project):
    made = fixed(project)
    changed(project, "integers(0, 90", "integers(0, 91")
    with pytest.raises(InputError, match=r"`mydata:Screws` gives another pair for val/0 than when the split was made"):
        list(made.batches("val", made.preprocessing((40, 60)), 8, 0))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "y, x = draw",
            "y, x, z = draw",
            r"failed at number 0 of train: ValueError: not enough .*, in mydata.py, line 16",
        ),
        (
            "return picture, [[0,",
            "return picture, [[1,",
            r"does not give boxes \(m, 5\).*of train/0, of classes from 0 to 0",
        ),
        (
            "return picture, [[0,",
            "return picture.astype(float), [[0,",
            r"a picture of float64 \(40, 60, 3\) for train/0",
        ),
        ("return picture, [[0,", "return [[0,", r"gives a list for train/0, and must give a pair"),
        ('"val": 8', '"val": 0', "has no picture in its part val"),
        ("def __len__", "def length", "returned a Screws, and must return a sequence"),
        (
            "def __init__(self, part):",
            "def __init__(self, part, size):",
            "missing 1 required positional argument: 'size'",
        ),
    ],
)
def test_its_faults_are_told_as_the_users(project, old, new, said):
    changed(project, old, new)
    with pytest.raises(InputError, match=said):
        fixed(project)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"name": "mydata:Screw"}, r"mydata.py has no `Screw`; did you mean `Screws`\?"),
        ({"name": "mydatas:Screws"}, r"there is no module `mydatas`; did you mean `mydata`\?.*Correct `data.name`"),
        ({"name": "digitz"}, r"there is no `digitz`; did you mean `digits`\?"),
        ({"classes": "sorted"}, "data.classes is not set: give the number of the classes"),
    ],
)
def test_a_wrong_configuration_is_told_before_anything_runs(project, data, said):
    with pytest.raises(InputError, match=said):
        fixed(project, **data)


@pytest.mark.parametrize(
    ("kind", "target", "fits"),
    [
        *(("label", one, True) for one in (3, np.int64(0))),
        *(("label", one, False) for one in (4, -1, 1.5)),
        *(("label", one, False) for one in ([1], "cat", None)),
        *(("mask", one, fits) for one, fits in (([[0, 3], [255, 1]], True), ([[0, 4]], False), ([0, 1], False))),
        *(("boxes", one, True) for one in ([], [[3, 0.5, 1, 2, 3]])),
        *(("boxes", [one], False) for one in ([255, 0, 0, 1, 1], [0, 0, 0, 1], [0, float("nan"), 0, 1, 1])),
        ("boxes", None, False),
    ],
)  # fmt: skip
def test_targets_that_do_not_fit_are_refused(kind, target, fits, monkeypatch):
    pair = (np.zeros((4, 5), np.uint8), target)
    monkeypatch.setattr(own_data, "load", lambda reference, part: [pair])
    item = own_data.OwnItem(0, "mydata:Screws", "val/0", kind, 4)
    if not fits:
        with pytest.raises(InputError, match=r"does not give .* as the target of val/0, of classes from 0 to 3"):
            item.read()
        return
    pixels, found = item.read()
    assert pixels.shape == (1, 3, 4, 5) and pixels.dtype == torch.uint8
    assert found.dtype == (torch.float32 if kind == "boxes" else torch.int64) and found.shape[0] == 1


def test_the_example_of_the_docs_is_the_one_that_is_tested():
    assert DATA in DOCS.read_text()
