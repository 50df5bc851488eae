"""`repnets check`: files that agree, files that do not, and files that cannot be held against each other."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pipeline import backends
from pipeline.artifacts.manifest import ExportSpec
from pipeline.cli import main
from pipeline.data.splits import open_split
from pipeline.models import programs
from tests.fixtures.documents import write_manifest

# checked in processes of their own, each of which imports a runtime
pytestmark = pytest.mark.slow


def run(*words: object) -> int:
    return main.main(["check", *map(str, words)])


def test_two_formats_of_a_network_agree(exported_files, tmp_path, capsys):
    words = (exported_files.fused_pte, "--against", exported_files.fused_pt2, "--json", tmp_path / "out.json")
    assert run(*words) == 0
    said = capsys.readouterr().out
    rows = {line[:13].strip(): re.split(r"  +", line[13:].strip()) for line in said.splitlines()[:6]}
    assert rows[""] == [str(exported_files.fused_pte), str(exported_files.fused_pt2)]
    assert rows["run by"] == ["ExecuTorch", "PyTorch"]
    assert (rows["convolution"], rows["batch norm"]) == (["3", "3"], ["0", "0"])
    for line in (
        "fed            16 random normal images, seed 0",
        "same class     100.00% of 16 images",
        "tolerance      1e-04, for fp32",
        "verdict        pass",
    ):
        assert line in said
    written = json.loads((tmp_path / "out.json").read_text())
    assert (written["verdict"], written["departure"], written["images"]) == ("pass", None, 16)
    assert 0 < written["max_relative_error"] < 1e-5 and written["agreement"] == 1
    assert written["max_absolute_error"] == pytest.approx(abs(written["got"] - written["want"]))
    assert f"logit {written['logit']} of image {written['image']}: " in said
    assert written["file"]["census"]["convolution"] == 3 and written["against"]["run_by"] == "PyTorch"


def test_fused_and_branched_are_one_network(exported_files, capsys):
    assert run(exported_files.branched_pte, "--against", exported_files.fused_onnx, "--exact") == 0
    said = capsys.readouterr().out
    assert re.search(r"^convolution +7 +3$", said, re.MULTILINE)
    assert "tolerance      1e-05, both in float32" in said


def test_validation_images_are_fed(exported_files, artifacts, capsys):
    words = (exported_files.fused_onnx, "--against", exported_files.fused_pt2)
    assert run(*words, "--split", artifacts.split) == 0
    assert f"fed            359 validation images of {artifacts.split}" in capsys.readouterr().out


def test_images_of_a_folder_are_fed(exported_files, tmp_path, capsys):
    Image.fromarray(np.random.default_rng(0).integers(256, size=(40, 50, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    words = (exported_files.fused_pt2, "--against", exported_files.fused_onnx)
    assert run(*words, "--images", tmp_path) == 0
    assert f"fed            1 image of {tmp_path}" in capsys.readouterr().out


def test_another_weight_is_found_where_it_is(exported_files, changed, tmp_path, capsys):
    other = changed(lambda name, weight: weight[0, 0, 0, 0].add_(1) if name == "stage2.weight" else None)
    assert run(other, "--against", exported_files.fused_pt2, "--json", tmp_path / "out.json") == 1
    said = capsys.readouterr()
    assert "verdict        fail" in said.out
    assert re.search(
        r"^error: .*changed\.pt2: logit \d of image \d+ is \S+ and \S+ in .*fused\.pt2, \S+ of the largest logit; "
        r"tolerance is 1e-04 \(for fp32\); the first layer that departs is conv2d_1: \[0, 0, \d+, \d+\] of its output "
        r"is .*; relu before it still agrees\.$",
        said.err,
    )
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["verdict"] == "fail" and "conv2d_1" in written["departure"]


def test_a_side_that_tells_no_layers_is_named(exported_files, changed, tmp_path, capsys):
    file = tmp_path / "copy.onnx"
    shutil.copy(exported_files.fused_onnx, file)
    other = changed(lambda name, weight: weight.mul_(1.1) if name == "stage2.weight" else None)
    assert run(other, "--against", file) == 1
    said = capsys.readouterr()
    assert (
        "layer that departs is conv2d_1" in said.err or "does not tell what each layer of copy.onnx gives" in said.err
    )
    assert "tolerance      1e-04, for fp32; no manifest.json tells that of copy.onnx" in said.out


def test_not_a_number_is_no_agreement(exported_files, changed, tmp_path, capsys):
    other = changed(lambda name, weight: weight.fill_(float("nan")) if name == "stage2.bias" else None)
    words = ("--against", exported_files.fused_pt2, "--tolerance", 1e9, "--json", tmp_path / "out.json")
    assert run(other, *words) == 1
    said = capsys.readouterr()
    assert (
        "nan of the largest logit; tolerance is 1e+09 (as given); the first layer that departs is conv2d_1" in said.err
    )
    written = json.loads((tmp_path / "out.json").read_text())
    assert (written["verdict"], written["max_relative_error"], written["got"]) == ("fail", None, None)


def test_precision_is_lost_in_its_own_arithmetic_and_in_its_weights(exported_files, capsys):
    words = (exported_files.half_pt2, "--against", exported_files.fused_pt2)
    assert run(*words) == 1  # no manifest says that it is fp16
    capsys.readouterr()
    assert run(*words, "--tolerance", 1e-2) == 0
    own = re.search(r"largest error  (\S+) of", capsys.readouterr().out)[1]
    assert run(*words, "--tolerance", 1e-2, "--exact") == 0
    said = capsys.readouterr().out
    exact = re.search(r"largest error  (\S+) of", said)[1]
    assert own != exact and "PyTorch, in float32" in said


class Other(nn.Module):
    """A network with the input and the output that it is told."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, classes, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3))


def other_program(path, shape, classes):
    torch.export.save(torch.export.export(Other(shape[1], classes).eval(), (torch.zeros(shape),)), path)
    return path


@pytest.mark.parametrize(
    ("shape", "classes", "told"),
    [
        ((1, 3, 48, 48), 10, "other.pt2 takes an input of 1 x 3 x 48 x 48 and {against} one of 1 x 3 x 32 x 32"),
        ((1, 3, 32, 32), 7, "other.pt2 gives 7 classes and {against} 10, so they are not of the same network"),
    ],
)
def test_files_that_do_not_fit_each_other_are_both_named(exported_files, tmp_path, capsys, shape, classes, told):
    other = other_program(tmp_path / "other.pt2", shape, classes)
    assert run(other, "--against", exported_files.fused_pte) == 2
    assert told.format(against=exported_files.fused_pte) in capsys.readouterr().err


def test_an_engine_without_its_gpu_is_not_compared(exported_files, tmp_path, capsys):
    engine = tmp_path / "a.engine"
    engine.write_bytes(b"ftrt" + bytes(20) + bytes((10, 3, 0, 26)))
    assert run(engine, "--against", exported_files.fused_pte) == 1
    assert "a.engine cannot be compared here: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "told"),
    [("a.bin", "a.bin has the suffix `.bin`"), ("a.onnx", "a.onnx is empty"), ("b.pte", "b.pte does not exist")],
)
def test_a_mistake_is_said_in_one_paragraph(exported_files, tmp_path, capsys, name, told):
    (tmp_path / "a.bin").write_bytes(b"")
    (tmp_path / "a.onnx").write_bytes(b"")
    assert run(exported_files.fused_pt2, "--against", tmp_path / name) == 2
    said = capsys.readouterr()
    assert told in said.err and (said.out, said.err.count("\n")) == ("", 1)


def test_a_pte_whose_weights_are_damaged_is_caught(exported_files, tmp_path, capsys):
    """The runtime loads it and computes, silently, something else."""
    content = bytearray(exported_files.fused_pte.read_bytes())
    content[-4096:-2048] = bytes(2048)
    (tmp_path / "fused.pte").write_bytes(content)
    assert run(tmp_path / "fused.pte", "--against", exported_files.fused_pt2) == 1
    said = capsys.readouterr()
    assert "verdict        fail" in said.out
    assert re.search(
        r"its weights are not those of its program: the first that differs is in \S+, at byte \d+", said.err
    )


def test_an_image_classifier_is_held_to_logits(exported_files, artifacts, tmp_path, capsys):
    """It takes pixels and gives probabilities; the network takes numbers and gives logits."""
    spec = ExportSpec(
        "fp32",
        (1, 3, 32, 32),
        open_split(artifacts.split).preprocessing(32, "bilinear"),
        {"normalization": True, "class_labels": True, "minimum_deployment_target": "iOS16"},
    )
    module = programs.as_module(torch.export.load(exported_files.fused_pt2))
    package = tmp_path / "fused.mlpackage"
    backends.load("coreml").export(torch.export.export(module, (torch.zeros(spec.input_shape),)), [package], spec)
    write_manifest(tmp_path, "coreml", {"fused": package}, spec)
    assert run(package, "--against", exported_files.fused_pt2, "--exact", "--tolerance", 1e-4) == 0
    said = capsys.readouterr().out
    assert "fed            16 random normal images, seed 0, in whole pixels" in said
    assert "compared       probabilities, which are all that one of them gives" in said
