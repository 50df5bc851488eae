"""Pictures without labels, and no pictures at all: every stage runs, and nothing is called accuracy that is none."""

import json
from pathlib import Path

import pytest
import torch

import repnets
from pipeline.artifacts.bench_result import accuracy_of
from pipeline.config.stages import SplitSettings
from pipeline.data import datasets, generated, splits
from pipeline.errors import GateError, InputError
from pipeline.models import checkpoints
from pipeline.stages import split
from tests.fixtures import any_networks, unlabelled
from tests.fixtures.unlabelled import Built, adopted

CLASSES = 7


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return unlabelled.pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Of a toy network that was trained elsewhere."""
    torch.manual_seed(0)
    model = repnets.create_model("toy", num_classes=CLASSES)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.weight, 0.5, 1.0)
            torch.nn.init.normal_(layer.running_mean, std=0.3)
            torch.nn.init.uniform_(layer.running_var, 0.5, 2.0)
    file = tmp_path_factory.mktemp("weights") / "mine.pth"
    torch.save(model.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def of_pictures(tmp_path_factory, weights, pictures) -> Built:
    return adopted(tmp_path_factory.mktemp("built"), weights, pictures, CLASSES)


@pytest.fixture(scope="module")
def of_none(tmp_path_factory, weights) -> Built:
    return adopted(tmp_path_factory.mktemp("built"), weights, None, CLASSES)


def test_pictures_are_parted_by_name_and_have_no_class(of_pictures):
    found = splits.open_split(of_pictures.split)
    assert (found.size("train"), found.size("val"), len(found.sources)) == (12, 8, 20)
    assert found.classes == tuple("0123456") and not found.has_labels
    labels = [
        one for _, each in found.batches("val", found.preprocessing(32, "bilinear"), 3, 0) for one in each.tolist()
    ]
    assert labels == [datasets.UNKNOWN] * 8


def test_on_pictures_what_is_told_is_agreement_with_the_float_network(of_pictures):
    verified = json.loads(of_pictures.verify.read_text())
    assert verified["accuracy"] == {"branched": 1.0, "fused": 1.0, "metric": "agreement"} and verified["images"] == 8
    assert "val_accuracy" not in checkpoints.read_header(of_pictures.checkpoint).metrics
    checked = of_pictures.check("fp32")
    assert checked.accuracy.metric == accuracy_of(checked).metric == "agreement"
    assert checked.accuracy.file == checked.forms["fused"].agreement == 1.0


def test_int8_takes_its_ranges_from_pictures_and_is_judged_by_the_float_network(of_pictures):
    told = of_pictures.quantize(max_metric_drop=1.0)
    assert told["accuracy"]["metric"] == "agreement" and told["accuracy"]["fused"] == 1.0
    assert told["calibration"]["images"] == 12
    checked = of_pictures.check("int8", max_metric_drop=1.0)
    assert checked.accuracy.file == told["accuracy"]["quantized"] == checked.forms["quantized"].accuracy
    assert checked.forms["fused"].accuracy == 1.0


def test_an_int8_program_that_often_disagrees_is_refused_in_those_words(of_pictures, monkeypatch):
    from pipeline.quantization import pt2e

    def spoil(prepared, simulation, size, inputs=None, _convert=pt2e.convert):
        for layer in simulation.layers[-1:]:
            layer.bias.data.copy_(layer.bias.flip(0) + 3 * torch.arange(CLASSES))
        return _convert(prepared, simulation, size, inputs)

    monkeypatch.setattr(pt2e, "convert", spoil)
    monkeypatch.setenv("REPNETS_STORE", str(of_pictures.folder / "store"))
    with pytest.raises(GateError, match=r"in int8 it agrees with the float network on \d+\.\d\d% of the pictures, in "):
        of_pictures.quantize(max_metric_drop=0.0, max_float_layers=0)


def test_of_a_task_agreement_is_that_of_the_task(tmp_path, pictures, monkeypatch):
    monkeypatch.setenv("REPNETS_STORE", str(tmp_path / "store"))
    model = repnets.create_model("toy_segmenter", num_classes=4)
    any_networks.seasoned(model)
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    made = adopted(tmp_path, tmp_path / "mine.pth", pictures, 4, "toy_segmenter", "segmentation")
    proved = json.loads(made.verify.read_text())
    assert proved["accuracy"] == {"branched": 1.0, "fused": proved["agreement"], "metric": "agreement"}
    assert proved["agreement"] > 0.999
    told = made.quantize(max_metric_drop=1.0)["accuracy"]
    assert told["metric"] == "agreement" and 0.5 < told["quantized"] < 1
    checked = made.check("int8", max_metric_drop=1.0)
    assert checked.accuracy.file == pytest.approx(told["quantized"], abs=0.01)


def test_without_pictures_files_are_proved_and_no_accuracy_is_told(of_none):
    found = splits.open_split(of_none.split)
    assert (found.size("train"), found.size("val"), dict(found.sources)) == (0, 64, {})
    checked = of_none.check("fp32")
    assert checked.forms["fused"].agreement == 1.0 and checked.images == 64
    told = accuracy_of(checked)
    assert (told.branched, told.fused, told.file, told.metric) == (None, None, None, "none")
    with pytest.raises(InputError, match=r"int8 takes its ranges from pictures .* `data.name` is none\. Give a"):
        of_none.quantize()


def test_generated_pictures_are_the_same_each_time_and_of_many_kinds():
    found = generated.pictures()
    assert found.shape == (64, 3, generated.SIDE, generated.SIDE) and torch.equal(found, generated.pictures())
    assert not torch.equal(found, generated.pictures(seed=1))
    spread = found.float().flatten(1).std(1)
    assert (spread == 0).sum() == 2 and (spread > 60).sum() >= 20 and (found == 0).any() and (found == 255).any()


def test_a_folder_without_pictures_is_named(tmp_path):
    settings = SplitSettings(name="pictures", root=str(tmp_path), val_fraction=0.2, split_seed=0, classes=3)
    with pytest.raises(InputError, match="holds no images"):
        split.run(settings, output=tmp_path / "split.json")
    with pytest.raises(InputError, match=r"is not a folder\. Name the folder that holds the pictures"):
        split.run(settings.model_copy(update={"root": str(tmp_path / "no")}), output=tmp_path / "split.json")
