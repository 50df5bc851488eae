"""Networks of several inputs through the stages: a siamese one of two images and a vector."""

import json
from pathlib import Path

import pytest
import torch

from pipeline import backends
from pipeline.artifacts import documents
from pipeline.artifacts.export_result import Manifest
from pipeline.backends import signatures
from pipeline.config import project
from pipeline.config.stages import AdoptSettings, SplitSettings
from pipeline.errors import InputError
from pipeline.stages import adopt, split
from tests.fixtures.own_code import forget
from tests.fixtures.unlabelled import Built

TARGETS = ("executorch", "tensorrt", "openvino", "coreml")
INPUTS = {"left": (3, 16, 16), "right": (1, 8, 8), "pose": (5,)}
NETWORK = """\
import torch
from torch import nn


def branches(inputs, outputs):
    wide = nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs))
    return nn.ModuleList([wide, nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs))])


class Siamese(nn.Module):
    def __init__(self, out):
        super().__init__()
        self.left, self.right, self.shared = branches(3, 8), branches(1, 8), branches(8, 8)
        self.pose, self.head = nn.Linear(5, 8), nn.Linear(24, out)

    def towards(self, x, first):
        x = sum(one(x) for one in first).relu()
        return sum(one(x) for one in self.shared).relu().mean((2, 3))

    def forward(self, left, right, pose):
        parts = self.towards(left, self.left), self.towards(right, self.right), self.pose(pose).relu()
        return self.head(torch.cat(parts, 1))


def build(num_classes=4):
    return Siamese(num_classes)
"""
DATA = '''\
import numpy as np

SHAPES = {"left": (3, 16, 16), "right": (1, 8, 8), "pose": (5,)}


class Pairs:
    """The same number twice: as a dict of arrays where it is even, as a tuple where it is odd."""

    def __init__(self, part):
        self.part = part

    def __len__(self):
        return {"train": 24, "val": 16}[self.part]

    def __getitem__(self, number):
        draw = np.random.default_rng([number, self.part == "val"])
        found = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
        return found if number % 2 else tuple(found.values())


class Labelled(Pairs):
    def __getitem__(self, number):
        return super().__getitem__(number), number % 4
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory, randomise) -> Path:
    """A folder of a run with the modules of the user's own, and weights of the network: mine.pth."""
    place = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.syspath_prepend(str(place))
        patch.setenv("REPNETS_STORE", str(place / "store"))
        (place / "siamese.py").write_text(NETWORK)
        (place / "pairs.py").write_text(DATA)
        forget("siamese", "pairs", folder=place)
        import siamese

        torch.manual_seed(0)
        torch.save(randomise(siamese.build()).state_dict(), place / "mine.pth")
        yield place
    forget("siamese", "pairs", folder=place)


def begun(folder: Path, name: str, inputs=INPUTS, **data: object) -> Built:
    """The network, adopted."""
    made = Built(folder)
    folder.mkdir(exist_ok=True)
    split.run(SplitSettings(name=name, root=None, val_fraction=0.4, split_seed=0, **data), output=made.split)
    how = AdoptSettings(arch="siamese:build", image_size=32, interpolation="bilinear", inputs=inputs)
    adopt.run(how, source=folder.parent / "mine.pth", split=made.split, checkpoint=made.checkpoint)
    return made


@pytest.fixture(scope="module")
def built(folder) -> Built:
    """The network, fused, proved and in int8, by data of the user's own without labels."""
    made = begun(folder / "own", "pairs:Pairs").fuse()
    assert made.quantize(max_metric_drop=0.1)["accuracy"]["metric"] == "R2"
    return made


@pytest.mark.parametrize(
    ("backend", "precision"),
    [(backend, precision) for precision in ("fp32", "int8") for backend in TARGETS],
)
def test_files_take_the_inputs_by_their_names(built, backend, precision):
    options = {"compute_capabilities": ["8.6"]} if backend == "tensorrt" else {}
    options |= {"minimum_deployment_target": "iOS17"} if (backend, precision) == ("coreml", "int8") else {}
    place = built.export(precision, backend, **options)
    assert built.check(precision, backend, max_metric_drop=0.1).status == "ok"
    manifest = documents.read(Manifest, place / "manifest.json")
    assert {one.name: one.shape[1:] for one in manifest.inputs} == INPUTS
    told = signatures.read(place / manifest.shipped_form.file_name).inputs
    assert [one.shape for one in told] == [one.shape for one in manifest.inputs]
    assert [one.name for one in told] in (list(INPUTS), [None] * 3)  # a .pte names none


def test_no_data_but_float_files_of_half_precision(folder):
    made = begun(folder / "none", "none").fuse()
    assert made.check("fp16").accuracy.metric == "none"


def test_labels_give_accuracy(folder):
    made = begun(folder / "labelled", "pairs:Labelled", classes=4, used_for="classification").fuse()
    proved = json.loads(made.verify.read_text())
    assert proved["accuracy"]["metric"] == "top-1"
    assert [one["name"] for one in proved["preprocessing"]["inputs"]] == list(INPUTS)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (None, r"takes several inputs, left and right and pose, .* for example `inputs: \{left: \[3, 64, 64\]"),
        ({"left": (3, 16, 16), "pose": (5,)}, "takes left and right and pose, .* names left and pose. Name these"),
        (INPUTS | {"pose": (6,)}, r"does not run on two samples of its inputs, .* pose \[6\]: .* Correct the shapes"),
    ],
)
def test_inputs_that_the_network_does_not_take_are_refused(folder, inputs, message):
    with pytest.raises(InputError, match=message):
        begun(folder / "wrong", "none", inputs)


def test_data_of_other_shapes_is_refused(folder):
    with pytest.raises(InputError, match=r"gives 3 inputs for val/0, left \[3, 16, 16\].* takes left \[3, 9, 9\]"):
        begun(folder / "other", "pairs:Labelled", {**INPUTS, "left": (3, 9, 9)}, classes=4,
                     used_for="classification")  # fmt: skip


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "digits"}, "digits has one image"),
        ({"image_size": 64}, "image_size is of networks of one image"),
        ({"inputs": {"left": [3, 8, 8]}}, "at least 2"),
        ({"inputs": {"left": [3, 8, 8], "class": [3]}}, "`class` is no name"),
        ({"inputs": {"left": [3, 8, 8], "right": [0]}}, "greater than or equal to 1"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(tmp_path, data, message):
    values = {"data": {"name": "none", "inputs": {"left": [3, 8, 8], "right": [4]}, **data}, "models": {}}
    with pytest.raises(InputError, match=message):
        project.load(values, backends.rules(), tmp_path)
