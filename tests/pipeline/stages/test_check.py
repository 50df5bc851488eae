"""The gate between a program and the files made of it: what it proves, and what it catches."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

from pipeline.config.stages import NoSettings
from pipeline.errors import GateError
from pipeline.models import programs
from pipeline.stages import check, reparameterize
from pipeline.verification import compare

FORMS = ("fused", "branched")


@pytest.fixture
def folder(exported_toy, tmp_path):
    """A copy of the .pte files of the toy network, fused and branched, and of their manifest, to be damaged."""
    return shutil.copytree(exported_toy("executorch", forms=FORMS), tmp_path / "toy")


def other_weights(artifacts, folder):
    """The fused program of the same network with one kernel a hundredth larger."""
    from pipeline.models import checkpoints

    state, header = checkpoints.read(artifacts.checkpoint)
    name = next(name for name, tensor in state.items() if tensor.dim() == 4)
    state[name] = state[name] * 1.01
    checkpoints.write(folder / "other.safetensors", state, header)
    reparameterize.run(
        NoSettings(),
        checkpoint=folder / "other.safetensors",
        split=artifacts.split,
        fused=folder / "other.pt2",
        report=folder / "fuse.json",
    )
    return folder / "other.pt2"


def test_what_is_written(folder, run_check):
    checked = run_check(folder, "executorch")
    assert checked["checked_by"] == "ExecuTorch"
    assert checked["images"] == 359
    for form in ("fused", "branched"):
        assert checked["forms"][form]["agreement"] == 1.0
        assert 0 < checked["forms"][form]["converter"]["max_relative_error"] < 1e-5
        assert 0 < checked["forms"][form]["precision"]["max_relative_error"] < 1e-5
    assert checked["forms"]["fused"]["converter"]["images"] == 64
    assert checked["forms"]["fused"]["census"]["convolution"] == 3
    assert checked["accuracy"]["file"] == checked["accuracy"]["fused"]


def test_on_some_of_the_images_alone(folder, run_check):
    checked = run_check(folder, "executorch", images=50)
    assert checked["images"] == 50
    accuracy = checked["accuracy"]
    assert accuracy["sample"] == {"images": 50, "of": 359, "fused": accuracy["file"]}
    assert accuracy["file"] * 50 == pytest.approx(round(accuracy["file"] * 50))  # of 50 images
    assert accuracy["fused"] * 359 == pytest.approx(round(accuracy["fused"] * 359))  # of all
    assert "sample" not in run_check(folder, "executorch", images=359)["accuracy"]


def test_a_file_that_is_not_the_manifests_is_caught(folder, run_check):
    shutil.copy(folder / "branched.pte", folder / "fused.pte")
    with pytest.raises(GateError, match="is not the file that its manifest describes"):
        run_check(folder, "executorch")


def test_a_branched_file_under_the_fused_name_is_caught(folder, run_check, believed):
    shutil.copy(folder / "branched.pte", folder / "fused.pte")
    believed(folder, "fused.pte")
    with pytest.raises(GateError, match=r"4 convolutions too many, of .*; the fused network has 3"):
        run_check(folder, "executorch")


def test_the_file_of_other_weights_is_caught(artifacts, folder, tmp_path, run_check):
    """The very same layers with other weights: only the numbers tell."""
    with pytest.raises(GateError, match=r"fused\.pte: logit \d of image \d+ is .* that differs is in stage1\.weight"):
        run_check(folder, "executorch", fused=other_weights(artifacts, tmp_path))


def test_the_tolerance_is_held(folder, run_check):
    with pytest.raises(GateError, match="tolerance for fp32 is 1e-30"):
        run_check(folder, "executorch", tolerance=1e-30)


@pytest.fixture
def half_files(exported_toy, tmp_path):
    """A copy of the ONNX files of the toy network in half precision."""
    return shutil.copytree(exported_toy("onnx", "fp16", FORMS), tmp_path / "half")


def test_the_converter_and_the_loss_of_half_precision_are_told_apart(half_files, run_check):
    fused, branched = (run_check(half_files, "onnx")["forms"][form] for form in FORMS)
    assert fused["converter"]["max_relative_error"] < 1e-5 < fused["precision"]["max_relative_error"] < 2e-2
    assert "folds batch norms before it rounds" in branched["converter"]["not_checked"]
    assert 1e-5 < branched["precision"]["max_relative_error"] < 2e-2


def test_what_a_network_loses_by_itself_in_half_precision_is_allowed_and_written(
    half_files, monkeypatch, capsys, run_check
):
    # as if no network may lose anything: the toy loses little, and that must be its own loss
    monkeypatch.setitem(compare.TOLERANCE, "fp16", 1e-9)
    checked = run_check(half_files, "onnx")["forms"]["fused"]["precision"]
    assert 1e-9 < checked["max_relative_error"] <= 2 * checked["loss_of_fused"] < 0.02
    assert "itself moves by" in capsys.readouterr().err
    with pytest.raises(
        GateError, match=r"tolerance for fp16 is 1e-09\. The first layer that departs is conv2d \(stage1"
    ):
        run_check(half_files, "onnx", tolerance=1e-9)


def test_a_half_precision_file_of_other_weights_is_caught_by_its_converter_gate(
    artifacts, half_files, tmp_path, run_check
):
    """A hundredth is less than half precision may lose in all, so only the exact comparison tells."""
    with pytest.raises(GateError, match=r"equally rounded weights.* first layer that departs is conv2d \(stage1\)"):
        run_check(half_files, "onnx", fused=other_weights(artifacts, tmp_path))


def test_a_truncated_file_is_caught(folder, run_check, believed):
    content = (folder / "fused.pte").read_bytes()
    (folder / "fused.pte").write_bytes(content[: len(content) // 2])
    believed(folder, "fused.pte")
    with pytest.raises(Exception, match=r"fused\.pte"):
        run_check(folder, "executorch")


@pytest.mark.parametrize(
    ("layers", "census"),
    [
        ([nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)], (2, 0)),  # as a depthwise convolution
        ([nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)], (1, 1)),
        ([nn.ConvTranspose2d(3, 4, 2, 2), nn.BatchNorm2d(4)], (1, 0)),  # folded by the exporter
        ([nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)], (1, 1)),
        ([nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4)], (1, 1)),
    ],
)
def test_a_file_may_have_what_the_program_has_and_no_more(layers, census):
    program = programs.static(nn.Sequential(*layers).eval(), (1, 3, 8, 8))

    def hold(convolutions: int, batch_norms: int) -> None:
        found = {"convolution": convolutions, "batch_norm": batch_norms, "join": 0, "int8": 0}
        check._hold_census(
            Path("a.pte"),
            {**found, "XNNConv2d": convolutions, "batch_norm.out": batch_norms},
            SimpleNamespace(program=program),
        )

    hold(*census)
    with pytest.raises(
        GateError, match=r"1 (convolution|batch norm) too many, of \d (XNNConv2d|batch_norm.out); the fused"
    ):
        hold(census[0] + 1, 1)
    with pytest.raises(GateError, match=r"\d batch norms? too many, of 2 batch_norm.out; the fused network has"):
        hold(1, 2)
    with pytest.raises(GateError, match=r"holds 0 convolutions \(0 XNNConv2d\), 1 fewer than the fused network's 1"):
        hold(0, 0)
