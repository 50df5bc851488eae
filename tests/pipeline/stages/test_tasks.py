"""The project of each task in examples/, at a size of seconds: trained, fused, proved, quantized, exported, checked.

The gates of verify and check hold as for classifiers, on the task's own metric. A network that learnt for seconds has a
score that moves with every digit, so what int8 may lose of it is set wide; examples/ holds the real limits.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import backends
from pipeline.artifacts import documents
from pipeline.artifacts.verify_result import VerifyResult
from pipeline.config import yaml_file
from pipeline.config.stages import NoSettings
from pipeline.data import image_file, photographs, scenes, splits
from pipeline.errors import InputError
from pipeline.models import resolve
from pipeline.stages import samples, split, train
from pipeline.stages.settings import settings_of
from tests.fixtures.unlabelled import Built

EXAMPLES = Path(__file__).parents[3] / "examples"
METRICS = {"detection": "mAP 50-95", "segmentation": "mIoU", "super-resolution": "PSNR [dB]", "embedding": "recall@1"}


def configured(example: str, **changes):
    values = yaml_file.read(EXAMPLES / example / "config.yaml")
    return resolve.load(values | changes, backends.rules(), EXAMPLES / example)


@pytest.fixture(scope="module", params=METRICS)
def built(request, tmp_path_factory):
    """An example after two epochs, on fewer scenes and crops."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPNETS_STORE", str(folder / "store"))
        patch.setattr(scenes, "TRAIN", 320)
        patch.setattr(scenes, "VAL", 48)
        patch.setattr(photographs, "TRAIN", 64)
        config = configured(request.param, training={"epochs": 2, "batch_size": 16, "learning_rate": 0.05})
        made, (model,) = Built(folder), config.models
        split.run(settings_of("split", config), output=made.split)
        how = settings_of("train", config, model)
        train.run(how, split=made.split, checkpoint=made.checkpoint, metrics=folder / "metrics.jsonl")
        made.fuse()
        yield made


def test_the_metric_of_the_task_is_told_at_every_hop(built):
    metric = METRICS[built.folder.name.rstrip("0123456789")]
    *_, last = map(json.loads, (built.folder / "metrics.jsonl").read_text().splitlines())
    proved = documents.read(VerifyResult, built.verify)
    assert last[f"val_{metric.split(' [')[0]}"] == pytest.approx(proved.accuracy.branched, rel=0.05, abs=0.03)
    assert proved.accuracy.metric == metric and proved.agreement > 0.99
    assert proved.accuracy.fused == pytest.approx(proved.accuracy.branched, abs=1e-3)
    int8 = built.quantize(max_metric_drop=100.0)["accuracy"]
    assert int8["metric"] == metric and int8["fused"] == pytest.approx(proved.accuracy.fused, abs=1e-3)
    for precision in ("fp32", "int8"):
        checked = built.check(precision, max_metric_drop=100.0)
        assert checked.status == "ok" and checked.accuracy.metric == metric
        program = proved.accuracy.fused if precision == "fp32" else int8["quantized"]
        assert checked.accuracy.file == pytest.approx(program, abs=0.02)
    _bundled(built, metric)
    _drawn(built)


def _bundled(built: Built, metric: str) -> None:
    """The bundle names the classes, tells the metric and what the outputs mean, and tests itself."""
    place, images = built.bundle("int8", built.folder), splits.open_split(built.split)
    labels = place / "labels.txt"
    assert labels.exists() is (images.use.kind in ("mask", "boxes"))
    assert not labels.exists() or tuple(labels.read_text().splitlines()) == images.classes
    told = (place / "README.md").read_text()
    assert f"{metric.split(' [')[0]} of this file: " in told
    meaning = {"segmentation": "class of a pixel", "detection": "(NMS)", "restoration": "R, G, B in [0, 1]"}
    assert meaning.get(images.use.task, "whose direction counts") in told
    assert json.loads((place / "bundle.json").read_text())["task"] == images.use.task
    tested = subprocess.run([sys.executable, "selftest.py"], cwd=place, capture_output=True, text=True)
    assert json.loads(tested.stdout.splitlines()[-1])["status"] == "ok"


def _drawn(built: Built) -> None:
    """The picture has a row of the images and one of each form; branched and fused are drawn alike."""
    made = {"checkpoint": built.checkpoint, "split": built.split, "fused": built.fused, "quantized": built.quantized}
    samples.run(NoSettings(), **made, output=built.folder / "samples.png")
    picture = image_file.read(built.folder / "samples.png")
    as_they_are, branched, fused, _ = picture[:, 4:].float().chunk(4, 1)
    assert float((branched - fused).abs().mean()) < 0.1
    if splits.open_split(built.split).use.task in ("segmentation", "restoration"):
        assert float((branched - as_they_are).abs().mean()) > 0.1


def test_a_network_of_another_task_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"`toy` is a network for classification, and data.task is segmentation"):
        configured("segmentation", models={"toy": {}})
    with pytest.raises(InputError, match=r"data.task: embedding cannot be learnt or judged by photographs"):
        configured("super-resolution", data={"name": "photographs", "task": "embedding"})
    with pytest.raises(InputError, match=r"`toy_segmenter` takes multiples of 16 pixels.*Set `image_size: 48`"):
        configured("segmentation", models={"toy_segmenter": {"image_size": 50}})
    with pytest.raises(InputError, match=r"nothing tells what pictures are for. Set `data: {task: segmentation}`"):
        data = {"name": "pictures", "root": str(tmp_path)}
        configured("segmentation", data=data, models={"toy_segmenter": {"checkpoint": "one.pth", "image_size": 64}})
    with pytest.raises(InputError, match=r"data.scale is for `task: restoration`"):
        configured("embedding", data={"name": "digits", "scale": 2})


def test_outputs_that_do_not_fit_the_task_stop_before_training(tmp_path, monkeypatch):
    monkeypatch.setenv("REPNETS_STORE", str(tmp_path / "store"))
    config = configured("super-resolution", data={"name": "photographs", "scale": 3, "image_size": 32})
    split.run(settings_of("split", config), output=tmp_path / "split.json")
    with pytest.raises(InputError, match=r"its picture is 64 x 64 pixels, and by data.scale 3 it must be 96 x 96"):
        train.run(
            settings_of("train", config, "toy_x2"), split=tmp_path / "split.json",
            checkpoint=tmp_path / "checkpoint.safetensors", metrics=tmp_path / "metrics.jsonl",
        )  # fmt: skip
