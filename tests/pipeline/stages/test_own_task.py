"""A task of the user's own: through every stage by its metric, and its faults told as the user's."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import backends
from pipeline.artifacts import documents
from pipeline.artifacts.verify_result import VerifyResult
from pipeline.data import scenes, splits
from pipeline.errors import InputError
from pipeline.models import resolve
from pipeline.stages import split, train
from pipeline.stages.settings import settings_of
from tests.fixtures import own_code
from tests.fixtures.own_task import NETWORK, TASK
from tests.fixtures.unlabelled import Built

DOCS = Path(__file__).parents[3] / "docs" / "tasks.md"
DATA = {"name": "digit_scenes", "task": "mytasks:Foreground", "image_size": 32, "color_order": "gray"}


def configured(**data):
    values = {
        "data": DATA | data,
        "models": {"mine": {"arch": "mynets:build"}},
        "training": {"epochs": 4, "batch_size": 8},
    }
    return resolve.load(values, backends.rules())


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder of the user's own, with a task and a network, in which the stages run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REPNETS_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(scenes, "TRAIN", 64)
    monkeypatch.setattr(scenes, "VAL", 16)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mytasks.py").write_text(TASK)
    (tmp_path / "mynets.py").write_text(NETWORK)
    own_code.forget("mytasks", "mynets", folder=tmp_path)
    yield tmp_path
    own_code.forget(folder=tmp_path)


def trained(folder: Path, **data) -> Built:
    config, made = configured(**data), Built(folder)
    split.run(settings_of("split", config), output=made.split)
    how = settings_of("train", config, "mine")
    train.run(how, split=made.split, checkpoint=made.checkpoint, metrics=folder / "metrics.jsonl")
    return made


def changed(project: Path, old: str, new: str) -> None:
    text = (project / "mytasks.py").read_text()
    assert old in text
    (project / "mytasks.py").write_text(text.replace(old, new))
    own_code.forget(folder=project)


def test_it_goes_through_every_stage_by_its_metric(project):
    made = trained(project).fuse()
    proved = documents.read(VerifyResult, made.verify)
    assert proved.accuracy.metric == "pixels right" and proved.accuracy.fused > 0.85 and proved.agreement > 0.999
    int8 = made.quantize(max_metric_drop=0.05)["accuracy"]
    checked = made.check("int8", max_metric_drop=0.05)
    assert int8["metric"] == checked.accuracy.metric == "pixels right"
    assert checked.accuracy.file == pytest.approx(int8["quantized"], abs=0.01)


def test_its_code_is_in_the_split_on_which_all_depends(project):
    config = configured()
    split.run(settings_of("split", config), output=project / "one.json")
    changed(project, "(targets > 0)).double()", "(targets >= 0)).double()")
    split.run(settings_of("split", config), output=project / "other.json")
    one, other = (splits.open_split(project / f"{name}.json") for name in ("one", "other"))
    assert one.use.code and one.use.code != other.use.code and replace(one.use, code="") == replace(other.use, code="")
    assert one.digest == other.digest  # the images are the same, so a checkpoint stays valid


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("binary_cross_entropy_with_logits(outputs[0][:, 0]", "binary_cross_entropy_with_logits(outputs[7]",
         r"`mytasks:Foreground` failed in `loss`: IndexError: .*, in mytasks.py, line 15"),
        ('raise ValueError(f"it', 'raise KeyError(f"it', None),
        ("(targets > 0)).double().mean()", "(targets > 0)).double().mean() * float('nan')",
         r"the metric `pixels right` is nan on the validation images"),
        ('targets = "mask"', 'targets = "maps"', r"`targets` is 'maps', and must be of label, mask, boxes, picture"),
        ('targets = "mask"', 'targets = "picture"',
         r"learns from a picture for each image, and digit_scenes has boxes or mask"),
        ("    def decode", "    def decoded", r"is no task: it has no `decode`"),
        ("shape[1:] != (1, *size)", "shape[1:] != (2, *size)",
         r"does not fit `data.task: mytasks:Foreground`: it gives \(2, 1"),
    ],
)  # fmt: skip
def test_its_faults_are_told_as_the_users(project, old, new, said):
    changed(project, old, new)
    if said is None:  # a fault in a branch that is not taken is none
        trained(project)
        return
    with pytest.raises(InputError, match=said):
        trained(project)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("mytasks:Foregroud", r"mytasks.py has no `Foregroud`; did you mean `Foreground`\?"),
        ("mytask:Foreground", r"there is no module `mytask`; did you mean `mytasks`\?.*Correct `data.task`"),
        ("my tasks:x", "is not of the form `module.path:name`"),
        ("segmentatoin", r"there is no task `segmentatoin`; did you mean `segmentation`\?"),
    ],
)
def test_a_wrong_name_is_told_before_anything_runs(project, task, said):
    with pytest.raises(InputError, match=said):
        configured(task=task)


def test_the_example_of_the_docs_is_the_one_that_is_tested():
    assert TASK in DOCS.read_text()
