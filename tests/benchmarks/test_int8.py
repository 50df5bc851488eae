"""benchmarks/int8.py: a small network through everything, whose figures are those of the runtimes, and what it says."""

import argparse
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline import backends
from pipeline.config.project import Verify
from pipeline.data import splits

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def int8():
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(PROJECT))
    import benchmarks.int8 as module

    yield module
    patch.undo()


@pytest.fixture(scope="module")
def subject(int8, tmp_path_factory):
    """toy, trained for a few seconds: right on more images than guessing would be, and not on all."""
    folder = tmp_path_factory.mktemp("subject")
    patch = pytest.MonkeyPatch()
    patch.setenv("REPNETS_STORE", str(tmp_path_factory.mktemp("store")))
    made = int8.subjects.trained("toy", "digits", folder, images=500, epochs=6, tests=48, max_drop=1.0)
    yield made
    patch.undo()


@pytest.fixture(scope="module")
def found(int8, subject):
    options = argparse.Namespace(threads=1, min_runs=10, max_seconds=0.1, accuracy_only=True)
    rows = [row for row in int8.ROWS if row.name not in int8.missing_here()]
    steps = SimpleNamespace(set_description=lambda text: None, update=lambda count=1: None)
    return int8.measured(subject, rows, options, steps)


@pytest.mark.slow
def test_each_figure_is_that_of_the_runtime_that_the_row_names(int8, subject, found):
    images, labels = map(np.concatenate, zip(*subject.test_images(), strict=True))
    reference = backends.load("pytorch").runtime.open_session(subject.folder / "fused.pt2", 1)(images)[0].argmax(1)
    assert found["test_images"] == 48 and (reference == labels).mean() > 0.1
    assert set(found["rows"]) == {row.name for row in int8.ROWS} - set(int8.missing_here())
    for row in (row for row in int8.ROWS if row.name in found["rows"]):
        runtime, one = import_module(backends.module_name(row.backend)).RUNTIME, found["rows"][row.name]
        start = (not row.timed and runtime.open_check_session) or runtime.open_session
        session = start(subject.folder / row.file, 1)
        classes = np.concatenate([session(images[at : at + 1])[0].copy() for at in range(48)]).argmax(1)
        assert one["accuracy"] == pytest.approx((classes == labels).mean()), row
        assert one["same_class"] == pytest.approx((classes == reference).mean()), row
        assert one["points"] == pytest.approx(100 * ((classes == labels).mean() - (reference == labels).mean())), row
        assert one["latency_ms"] is one["speedup"] is None


@pytest.mark.slow
def test_each_int8_file_is_int8_and_each_float_file_is_not(int8, subject, found):
    sizes = {name: one["size_bytes"] for name, one in found["rows"].items()}
    small = sizes[int8.BASELINE.name] / 2
    for row in (row for row in int8.ROWS if row.name in sizes and row.timed):
        assert (sizes[row.name] < small) == (row.kind != int8.FLOAT), row
    names = ("quantized.onnx", "onnxruntime-channel.onnx", "onnxruntime-defaults.onnx")
    scales = {name: weight_scales(subject.folder / name) for name in names}
    assert min(scales["quantized.onnx"]) > 1 and min(scales["onnxruntime-channel.onnx"]) > 1
    assert set(scales["onnxruntime-defaults.onnx"]) == {1}


def weight_scales(file):
    """How many scales each 4-dimensional int8 weight of an ONNX file has."""
    import onnx

    graph = onnx.load(file).graph
    sizes = {one.name: one.dims for one in graph.initializer}
    for node in (node for node in graph.node if node.op_type == "Constant"):
        sizes[node.output[0]] = node.attribute[0].t.dims
    reads = [node.input for node in graph.node if node.op_type == "DequantizeLinear"]
    return [int(np.prod(sizes[scale])) for weight, scale, *_ in reads if len(sizes.get(weight, ())) == 4]


@pytest.mark.slow
def test_naive_ranges_are_the_largest_values(int8, subject):
    from pipeline.models import program_file

    calibration = subject.calibration()
    assert calibration.shape == (417, 3, 32, 32)  # five sixths of 500: training images, without what validates
    program, _ = program_file.read(subject.folder / "fused.pt2")
    made = int8.naive(program, calibration, per_tensor=True)
    first = next(node for node in made.graph.nodes if "quantize_per_tensor" in str(node.target))
    assert first.args[1] == pytest.approx(np.abs(calibration).max() / 127)


@pytest.mark.slow
def test_a_gate_that_does_not_hold_is_told_beside_the_figures(int8, subject):
    refusing = subject.__class__(**{**vars(subject), "refusal": "in int8 it is right on 1.00%"})
    options = argparse.Namespace(threads=1, min_runs=10, max_seconds=0.1, accuracy_only=True)
    rows = [int8.ROWS[0], next(row for row in int8.ROWS if (row.kind, row.backend) == (int8.OURS, "executorch"))]
    steps = SimpleNamespace(set_description=lambda text: None, update=lambda count=1: None)
    got = int8.measured(refusing, rows, options, steps)
    assert set(got["rows"]) == {row.name for row in rows}
    assert int8.verdict(got).startswith(
        "Ours: the stage quantize would not ship it: in int8 it is right on 1.00%; within"
    )


def test_no_test_image_trains_validates_or_calibrates(int8):
    own = splits.new_split("digits", None, ("0", "1"), {}, [], {"train": range(100), "val": range(100, 140)})
    mine = int8.subjects.divided(own, 60)
    assert len(mine.parts["train"]) == 50 and len(mine.parts["val"]) == 10
    assert len({*mine.parts["train"], *mine.parts["val"]}) == 60 and max(max(one) for one in mine.parts.values()) < 100
    assert mine.parts == int8.subjects.divided(own, 60).parts


def test_no_picture_is_in_two_parts(int8):
    names = [name for pictures in int8.pretrained._PICTURES.values() for name in pictures]
    assert len(names) == len(set(names)) and not {"motorcycle_right.png", "motorcycle_left.png"} <= set(names)


def test_each_network_is_seen_where_it_can_be(int8):
    options = argparse.Namespace(networks=["toy", "efficientnet_lite0"], data=int8.subjects.DATA)
    assert int8.wanted(options) == [
        ("toy", "digits"), ("toy", "fashion_mnist"), ("efficientnet_lite0", "fashion_mnist"),
        ("efficientnet_lite0", "pictures"),
    ]  # fmt: skip


def test_networks_that_are_not_seen_on_the_data_are_an_error_at_once(int8, capsys):
    with pytest.raises(SystemExit, match="2"):
        int8.main(["--networks", "toy", "--data", "pictures"])
    assert "toy is not seen on pictures" in capsys.readouterr().err


def test_a_last_layer_is_fitted_to_what_it_reads(int8):
    import torch

    random = np.random.default_rng(0)
    labels = np.arange(300) % 3
    features = random.normal(size=(300, 8)).astype(np.float32) * np.logspace(-3, 3, 8, dtype=np.float32) + 5
    features[:, :3] += np.eye(3, dtype=np.float32)[labels] * features.std(0)[:3] * 4
    layer = int8.pretrained.fitted(features, labels)
    assert layer.weight.shape == (3, 8)
    with torch.no_grad():
        assert (layer(torch.from_numpy(features)).argmax(1).numpy() == labels).mean() > 0.9


def test_a_stage_that_fails_ends_the_run_with_its_words(int8, tmp_path):
    with pytest.raises(int8.subjects.StageError, match=r"^verify: .*does not exist"):
        paths = {name: tmp_path / name for name in ("checkpoint", "split", "fused", "output")}
        int8.subjects.stage("verify", Verify(), tmp_path, **paths)


def test_what_is_not_installed_is_said(int8, monkeypatch):
    monkeypatch.setattr(int8.rivals, "versions", lambda *names: {name: None for name in names})
    missing = int8.missing_here()
    assert missing["NNCF by OpenVINO"].reason == "openvino and nncf is not installed."
    assert "repnets[peers]" in missing["NNCF by OpenVINO"].remedy
    monkeypatch.setattr(int8.pretrained, "versions", lambda *names: {name: None for name in names})
    assert "pip install efficientnet-lite-pytorch" in int8.pretrained.unavailable().remedy


def test_the_size_is_of_all_that_belongs_to_a_file(int8, tmp_path):
    (tmp_path / "nncf.xml").write_bytes(b"12")
    (tmp_path / "nncf.bin").write_bytes(b"345")
    (tmp_path / "a.mlpackage" / "Data").mkdir(parents=True)
    (tmp_path / "a.mlpackage" / "Data" / "weights").write_bytes(b"1234")
    assert int8.size(tmp_path / "nncf.xml") == 5 and int8.size(tmp_path / "a.mlpackage") == 4


def test_the_report_holds_the_aims_against_what_was_found(int8):
    latency = {"p50": 0.5, "n": 50, "launches": 3}

    def one(row, accuracy):
        faster = {"median": 2.5, "low": 2.4, "high": 2.6} if row.timed and row != int8.BASELINE else None
        shared = {"same_class": 0.99, "size_bytes": 250_000, "latency_ms": latency if row.timed else None}
        return {"accuracy": accuracy, "points": 100 * (accuracy - 0.95), "speedup": faster, **shared}

    def printed(ours, others):
        figures = {int8.FLOAT: 0.95, int8.OURS: ours}
        rows = {row.name: one(row, figures.get(row.kind, others)) for row in int8.ROWS if row.kind != "NNCF"}
        shared = {
            "test_images": 200,
            "image_size": 32,
            "calibration_images": 512,
            "refusal": None,
            "warning": "others used 0.9 cores",
        }
        about = {"cpu": "a CPU", "cores": 2, "threads": 1, "versions": {"torch": "2", "nncf": None}}
        missing = {"NNCF by OpenVINO": {"reason": "nncf is not installed.", "remedy": "Install it: pip."}}
        result = {
            "networks": {"toy on digits": {**shared, "repair": "range setting; in float: no layer", "rows": rows}}
        }
        return int8.report({**result, "until": {"min_runs": 50}, "unavailable": missing, "conditions": about})

    good, bad = printed(0.95, 0.94), printed(0.94, 0.95)
    assert good.startswith("a CPU, 2 cores, 1 thread, batch 1; torch 2.")
    assert "200 test images of 32 x 32, one of them is 0.50 points; 512 to calibrate with; 50 runs of each" in good
    assert "in 3 launches; others used 0.9 cores." in good
    assert "| ours | ExecuTorch | 95.00% | +0.00 | 99.00% | 0.500 | 2.50x (2.40-2.60) | 0.25 |" in good
    assert "| float32 | ExecuTorch | 95.00% | +0.00 | 99.00% | 0.500 | 1 | 0.25 |" in good
    assert "| ours | Core ML's evaluator | 95.00% | +0.00 | 99.00% | - | - | 0.25 |" in good
    assert "| NNCF | OpenVINO | unavailable | - | - | - | - | - |" in good
    assert good.endswith("NNCF by OpenVINO: nncf is not installed. Install it: pip.")
    assert "within 0.5 points of float: yes (+0.00 by PyTorch); not behind the others: yes (+1.00 to ONNX" in good
    assert "2 times as fast on ExecuTorch: yes. Repair: range setting; in float: no layer." in good
    assert "within 0.5 points of float: **no** (-1.00 by PyTorch); not behind the others: **no** (-1.00 to" in bad


def test_help_teaches():
    command = [sys.executable, str(PROJECT / "benchmarks" / "int8.py"), "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for words in ("quantized.pt2", 'pip install "repnets[peers]"', "--accuracy-only", "--quick", "fashion_mnist"):
        assert words in said
    assert re.search(r"toy.*repvgg_a0.*qarepvgg_a0.*mobileone_s0.*efficientnet_lite0", said, re.DOTALL)


def test_a_network_that_is_not_there_is_an_error_at_once():
    command = [sys.executable, str(PROJECT / "benchmarks" / "int8.py"), "--networks", "repvgg_a9"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "there is no network `repvgg_a9`; did you mean `repvgg_" in done.stderr
