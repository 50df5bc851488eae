"""Networks without classes go all the way: several outputs, maps, images of another size; each output is held."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from pipeline import backends
from pipeline.artifacts import documents
from pipeline.artifacts.bench_result import accuracy_of
from pipeline.artifacts.export_result import Manifest
from pipeline.artifacts.manifest import ExportSpec
from pipeline.artifacts.verify_result import VerifyResult
from pipeline.backends import signatures
from pipeline.data import splits
from pipeline.errors import GateError, InputError
from pipeline.models import checkpoints, networks, programs
from pipeline.verification import compare
from tests.fixtures import any_networks, unlabelled
from tests.fixtures.any_networks import seasoned
from tests.fixtures.unlabelled import Built, adopted

OURS = "tests.fixtures.any_networks:"
NAMES = ["boxes", "scores", "features_0", "features_1"]
SIZE = (48, 64)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return unlabelled.pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def built(tmp_path_factory, pictures):
    """A function: the artifacts of a network of the fixtures, once."""
    made = {}

    def build(name: str, root: Path | None = pictures, **images: object) -> Built:
        key = (name, root, *images.items())
        if key not in made:
            folder = tmp_path_factory.mktemp(name)
            torch.save(seasoned(getattr(any_networks, name)()).state_dict(), folder / "mine.pth")
            images = {"image_size": SIZE} | images
            made[key] = adopted(folder, folder / "mine.pth", root, "sorted", OURS + name, **images)
        return made[key]

    return build


@pytest.fixture(scope="module")
def detector(built) -> Built:
    """Takes letterboxed images in BGR."""
    return built("Detector", color_order="BGR", resize="letterbox")


def written(folder: Path) -> Manifest:
    return documents.read(Manifest, folder / "manifest.json")


def test_every_output_is_proved(detector):
    proved = documents.read(VerifyResult, detector.verify)
    assert proved.accuracy.metric == "R2" and proved.accuracy.fused > 1 - 1e-9
    assert set(proved.float64.max_relative_error) == {
        "random 48 x 64", "random 49 x 65", "random 72 x 96", "real 48 x 64",
    }  # fmt: skip
    header = checkpoints.read_header(detector.checkpoint)
    assert header.num_classes == 0 and header.preprocessing.color_order == "BGR"


@pytest.mark.parametrize(
    ("backend", "precision"),
    [
        ("executorch", "fp32"),
        ("onnx", "fp16"),
        pytest.param("coreml", "fp16", marks=pytest.mark.slow),
        pytest.param("openvino", "fp32", marks=pytest.mark.slow),
    ],
)
def test_several_outputs_have_their_names_in_the_manifest_and_in_the_file(detector, backend, precision):
    checked = detector.check(precision, backend)
    assert accuracy_of(checked).metric == "R2" and checked.forms["fused"].accuracy > 0.999
    manifest = written(detector.folder / f"{backend}-{precision}")
    assert [one.name for one in manifest.outputs] == NAMES
    assert [one.shape for one in manifest.outputs] == [(1, 4, 240), (1, 5, 240), (1, 24, 12, 16), (1, 32, 6, 8)]
    found = signatures.read(detector.folder / f"{backend}-{precision}" / manifest.shipped_form.file_name)
    assert [one.shape for one in found.outputs] == [one.shape for one in manifest.outputs]
    assert [one.name for one in found.outputs] in (NAMES, [None] * 4)  # a .pte names none


def test_a_bundle_tests_itself_and_shows_what_is_given(detector, tmp_path):
    detector.check("fp32")
    place = detector.bundle("fp32", tmp_path)
    assert not (place / "labels.txt").exists() and not (place / "integration/classify.py").exists()
    shown = "`boxes`, 1 x 4 x 240; `scores`, 1 x 5 x 240; `features_0`, 1 x 24 x 12 x 16; `features_1`, 1 x 32 x 6 x 8"
    assert shown in " ".join((place / "preprocessing.txt").read_text().split())
    assert f"gives {shown} for images of 48 x 64 pixels" in (place / "README.md").read_text()

    def say(*words: str) -> str:
        return subprocess.run([sys.executable, *words], cwd=place, capture_output=True, text=True).stdout

    told = json.loads(say("selftest.py").splitlines()[-1])
    assert told["status"] == "ok" and told["images"] == 3 and told["max_error"] < 1e-4
    picture = next(Path(splits.open_split(detector.split).root).glob("*.png"))
    lines = say("integration/run.py", str(picture)).splitlines()
    assert [line.partition(": ")[2].split(",")[0] for line in lines] == NAMES


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["executorch", "onnx", "coreml"])
def test_int8_of_several_outputs(detector, backend):
    if not detector.quantized.exists():
        told = detector.quantize()
        assert told["accuracy"]["metric"] == "R2" and told["accuracy"]["quantized"] > 0.99
    detector.export("int8", backend, **({"minimum_deployment_target": "iOS17"} if backend == "coreml" else {}))
    checked = detector.check("int8", backend)
    assert checked.forms["quantized"].accuracy > 0.99


@pytest.mark.slow
def test_slopes_that_a_converter_leaves_in_float32_beside_halves(built):
    """coremltools stores all else in half precision, so that what torch computes with halves is off by digits."""
    made = built("trained_slopes")
    made.quantize()
    made.export("int8", "coreml", minimum_deployment_target="iOS17")
    assert made.check("int8", "coreml").status == "ok"


@pytest.mark.slow
def test_values_in_the_middle_between_two_integers(built, believed):
    """The runtime rounds many of them the other way, more than half a digit an image, and the file is right."""
    made = built("Sloped")
    made.quantize()
    folder = made.export("int8", "onnx")
    held = made.check("int8", "onnx").forms["quantized"].converter
    assert held.mean_relative_error > compare.EXACT_INT8
    assert held.tolerance < 6 / 127
    file = folder / "quantized.onnx"
    network = onnx.load(file)
    read = next(node for node in network.graph.node if node.op_type == "PRelu").input[1]
    slope = next(one for one in network.graph.initializer if one.name == read)
    slope.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(slope) * np.float32(4), slope.name))
    onnx.save(network, file)
    believed(folder, file.name)
    with pytest.raises(GateError, match="does not hold the integers that it was made from"):
        made.check("int8", "onnx")


@pytest.mark.parametrize(
    ("name", "shape"),
    [("Segmenter", (1, 6, *SIZE)), ("Embedder", (1, 16)), ("Upscaler", (1, 3, 2 * SIZE[0], 2 * SIZE[1]))],
)
def test_one_output_of_any_shape(built, name, shape):
    made = built(name)
    checked = made.check("fp32")
    assert checked.forms["fused"].accuracy > 0.999
    (output,) = written(made.folder / "executorch-fp32").outputs
    assert (output.name, output.shape) == ("output", shape)


def test_without_any_data(built):
    made = built("Segmenter", root=None)
    checked = made.check("fp32")
    assert accuracy_of(checked).metric == "none" and checked.images == 64
    assert splits.open_split(made.split).classes == ()


SABOTAGES = {
    "two outputs swapped": (lambda given: {**given, "boxes": given["twins"], "twins": given["boxes"]}, r"boxes\["),
    "boxes off by half a stride": (lambda given: {**given, "boxes": given["boxes"] + 2}, r"boxes\["),
    "sigmoid left out": (lambda given: {**given, "scores": given["scores"].logit()}, r"scores\["),
    "a map shifted by a pixel": (lambda given: {**given, "mask": given["mask"].roll(1, -1)}, r"mask\["),
}


class Altered(torch.nn.Module):
    def __init__(self, network, change):
        super().__init__()
        self.network, self.change = network, change

    def forward(self, x):
        return self.change(self.network(x))


@pytest.mark.parametrize("how", SABOTAGES)
def test_a_file_that_gives_something_else_is_caught_by_the_output(built, believed, how):
    made = built("Mixed")
    folder = made.export("fp32", "onnx")
    change, where = SABOTAGES[how]
    network = Altered(programs.of_form("fused", made.checkpoint, made.fused), change)
    manifest = written(folder)
    names = tuple(one.name for one in manifest.outputs)
    spec = ExportSpec("fp32", manifest.input.shape, manifest.preprocessing, output_names=names)
    file = folder / "fused.onnx"
    backends.load("onnx").export(programs.static(network, manifest.input.shape), [file], spec)
    believed(folder, "fused.onnx")
    with pytest.raises(GateError, match=where):
        made.check("fp32", "onnx")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("color_order", "RGB", r"`color_order` of the preprocessing is RGB, but the network was trained and verified"),
        ("resize", "stretch", r"`resize` of the preprocessing is stretch, but the network was trained and verified"),
        ("outputs", None, r"`output name` is scores, but boxes by"),
    ],
)
def test_a_manifest_that_tells_otherwise(detector, field, value, message):
    place = detector.export("fp32") / "manifest.json"
    right = place.read_text()
    manifest = json.loads(right)
    if field == "outputs":
        manifest["outputs"][0]["name"], manifest["outputs"][1]["name"] = "scores", "boxes"
    else:
        manifest["preprocessing"][field] = value
    try:
        place.write_text(json.dumps(manifest))
        with pytest.raises(GateError, match=message):
            detector.check("fp32")
    finally:
        place.write_text(right)


class Gives(torch.nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, x):
        return self.what(x)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda x: {"a": x, "size": 7}, r"the network gives a int at `size`, and must give tensors alone"),
        (lambda x: {}, r"the network gives no tensor"),
        (lambda x: (x, torch.zeros(100, 6)), r"its output `output_1` has the shape \(100, 6\) for two images.*\(NMS\)"),
        (lambda x: x.mean(), r"its output has the shape \(\) for two images"),
        (lambda x: {"a_b": x, "a": {"b": x}}, r"two outputs of the network are named `a_b`"),
        (lambda x: x.argmax(1), r"its output is of the type int64.* leave out what makes whole numbers of scores"),
    ],
    ids=["a number", "nothing", "boxes of all images", "a mean", "one name twice", "whole numbers"],
)
def test_outputs_that_cannot_be_held(detector, what, message):
    preprocessing = checkpoints.read_header(detector.checkpoint).preprocessing
    with pytest.raises(InputError, match=message):
        networks.require_runs(Gives(what), "mine:build", preprocessing)
