"""benchmarks/peers.py: a small network on all runtimes, and what it says where they do not agree or are not here."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.artifacts.manifest import Unavailable
from pipeline.backends.worker import client
from pipeline.errors import GateError

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def peers():
    spec = importlib.util.spec_from_file_location("peers", PROJECT / "benchmarks" / "peers.py")
    module = importlib.util.module_from_spec(spec)
    patch = pytest.MonkeyPatch()
    patch.setattr(sys, "path", list(sys.path))
    patch.setitem(sys.modules, "peers", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    patch.undo()


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A real run, as short as it can be: the JSON, and what was printed."""
    output = tmp_path_factory.mktemp("peers") / "peers.json"
    words = ["--networks", "toy", "--size", "32", "--min-runs", "1", "--max-seconds", "0.1", "--launches", "1", "1"]
    words += ["--json", str(output)]
    command = [sys.executable, str(PROJECT / "benchmarks" / "peers.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=output.parent)
    assert done.returncode == 0, done.stderr
    return json.loads(output.read_text()), done.stdout


@pytest.mark.slow
def test_both_forms_run_on_every_runtime(result, peers):
    document, printed = result
    found = document["networks"]["toy"]
    missing = set(document["unavailable"])
    assert missing <= {"OpenVINO", "torch.compile"}
    assert set(found["runtimes"]) == {runtime.name for runtime in peers.RUNTIMES} - missing
    for runtime, one in found["runtimes"].items():
        for form in peers.FORMS:
            figures = one["forms"][form]
            assert figures["latency_ms"]["p50"] > 0 and figures["relative_error"] < 1e-4
            share = found["operations"][form] / figures["latency_ms"]["p50"] / 1e6 / found["peak_gflops"]
            # medians of ratios and ratios of medians: alike in size, on a busy machine not more
            assert share / 10 < figures["share_of_peak"]["median"] < share * 10
        assert one["fused_over_branched"]["median"] > 0
        assert (one["over_eager"]["fused"] is None) == (runtime == "eager")
    assert found["operations"]["branched"] > found["operations"]["fused"] > 0
    rows = [line.split(" | ")[0].strip("| ") for line in printed.splitlines() if line.startswith("| ")]
    assert rows == ["", "---", *(runtime.name for runtime in peers.RUNTIMES)]
    assert "1 thread, batch 1, 32 x 32, float32" in printed and "GFLOP/s" in printed


@pytest.mark.slow
def test_openvino_has_a_row_where_it_is_installed(result):
    pytest.importorskip("openvino")
    assert "OpenVINO" in result[0]["networks"]["toy"]["runtimes"]


def test_a_runtime_that_is_not_here_is_said_to_be(peers, monkeypatch):
    missing = Unavailable("OpenVINO is not installed.", 'Install it: pip install "repnets[peers]".')
    latency = {"p50": 2.0, "n": 5, "launches": 3}
    figure = {"median": 1.5, "low": 1.4, "high": 1.6}
    form = {"latency_ms": latency, "share_of_peak": {"median": 0.5, "low": None, "high": None}}
    one = {
        "forms": {"branched": form, "fused": form},
        "fused_over_branched": figure,
        "over_eager": {"branched": figure, "fused": None},
    }
    found = {
        "operations": {"branched": 2e9, "fused": 1e9},
        "peak_gflops": 100.0,
        "product_ms": latency,
        "runtimes": {runtime.name: one for runtime in peers.RUNTIMES if runtime.name != "OpenVINO"},
    }
    about = {"cpu": "a CPU", "cores": 2, "threads": 2, "versions": {"torch": "2", "openvino": None}, "warning": "busy"}
    printed = peers.report(
        {
            "input_shape": [1, 3, 224, 224],
            "unavailable": {"OpenVINO": {"reason": missing.reason, "remedy": missing.remedy}},
            "networks": {"toy": found},
            "conditions": about,
        }
    )
    assert "a CPU, 2 cores, 2 threads, batch 1, 224 x 224, float32; torch 2; busy." in printed
    assert "| OpenVINO | unavailable | - | - | - | - | - | - |" in printed
    assert "| ExecuTorch | 2.00 | 2.00 | 1.50x (1.40-1.60) | 1.50x (1.40-1.60) | 1 | 50 % | 50 % |" in printed
    assert printed.endswith('OpenVINO: OpenVINO is not installed. Install it: pip install "repnets[peers]".')
    assert "**toy**: 2.00 GFLOP branched, 1.00 fused" in printed


def test_runtimes_that_do_not_agree_are_not_timed(peers):
    logits = np.random.default_rng(0).standard_normal((4, 10)).astype(np.float32)
    good = {("branched", "eager"): logits, ("fused", "OpenVINO"): logits + 1e-6}
    assert peers.require_equal("toy", good)["fused", "OpenVINO"] < 1e-5
    for bad in (logits + 0.1, np.full_like(logits, np.nan)):
        with pytest.raises(GateError, match=r"^toy, fused, by OpenVINO: logit \d of image \d is .* cannot be compared"):
            peers.require_equal("toy", good | {("fused", "OpenVINO"): bad})


def test_operations_are_twice_the_multiply_accumulates(peers):
    conv = torch.nn.Conv2d(3, 8, 3, bias=False)
    assert peers.count(conv, (1, 3, 10, 10)) == 2 * 8 * 3 * 9 * 64


def test_the_product_is_one_of_matrices(peers, tmp_path):
    product = peers.product
    assert product.write(tmp_path / "product.onnx", 64) == 2 * 64**3
    image = np.zeros((1, 3, 4, 4), np.float32)
    got = client.predict(product.__name__, tmp_path / "product.onnx", image, session="own")
    assert got.shape == (1, 64 * 64) and got.std() > 1


@pytest.mark.slow
def test_openvino_computes_what_onnx_runtime_does(peers, tmp_path):
    pytest.importorskip("openvino")
    modules = peers.both_forms("toy", 32)
    file = peers.write(modules["fused"], (1, 3, 32, 32), tmp_path / "toy.onnx")
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    want = client.predict("onnx", file, images, session="own")
    got = client.predict("benchmarks.runtimes.openvino", file, images, session="own")
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


def test_help_teaches():
    command = [sys.executable, str(PROJECT / "benchmarks" / "peers.py"), "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for words in ("torch.compile", 'pip install "repnets[peers]"', "--threads", "--max-seconds", "default: 224"):
        assert words in said
    assert re.search(r"toy.*repvgg_a0.*mobileone_s0", said, re.DOTALL)
