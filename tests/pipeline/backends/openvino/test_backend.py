"""OpenVINO through the stages, as a target of each precision; and what is its own beside the contract."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from pipeline.backends.openvino.backend import BACKEND, RUNTIME
from pipeline.errors import InputError, StageError
from pipeline.stages import bench

openvino = pytest.importorskip("openvino", reason='comes with pip install "repnets[openvino]"')

FORMS = {"fp32": "fused", "fp16": "fused", "int8": "quantized"}


@pytest.mark.parametrize("precision", FORMS)
def test_a_target_is_exported_and_holds_every_gate(checked_toy, precision):
    folder = checked_toy("openvino", precision, FORMS[precision])
    checked = json.loads((folder / "check.json").read_text())
    assert (checked["status"], checked["checked_by"]) == ("ok", "OpenVINO")
    held = checked["forms"][FORMS[precision]]
    assert held["census"]["int8"] == (4 if precision == "int8" else 0)
    assert "not_checked" not in held["converter"] and "not_checked" not in held["precision"]


def test_half_precision_and_int8_are_stored_as_such(checked_toy):
    sizes = {name: (checked_toy("openvino", name, form) / f"{form}.bin").stat().st_size for name, form in FORMS.items()}
    assert sizes["fp16"] < 0.51 * sizes["fp32"] and sizes["int8"] < 0.27 * sizes["fp32"]


def test_int8_runs_on_integer_kernels(checked_toy):
    file = checked_toy("openvino", "int8", "quantized") / "quantized.xml"
    compiled = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    about = [one.get_rt_info() for one in compiled.get_runtime_model().get_ordered_ops()]
    made = [(one["layerType"].astype(str), one["primitiveType"].astype(str)) for one in about]
    kernels = [kernel for layer, kernel in made if layer in ("Convolution", "FullyConnected")]
    assert len(kernels) == 4 and all(kernel.lower().endswith("i8") for kernel in kernels), kernels


def test_the_same_program_gives_the_same_bytes(elsewhere, program_files, spec, programs, tmp_path):
    """In another process, and after this one has converted others: names count nothing of what was before."""
    files = [tmp_path / name for name in BACKEND.file_names(["fused"])]
    for _ in range(2):
        BACKEND.export(programs["fused"], files, spec())
    other = elsewhere("openvino", program_files["fused"], "fp32", {})
    assert all(file.read_bytes() == (other / file.name).read_bytes() for file in files)


def test_another_shape_and_missing_weights_are_told(programs, spec, image, tmp_path):
    files = [tmp_path / name for name in BACKEND.file_names(["fused"])]
    BACKEND.export(programs["fused"], files, spec())
    with pytest.raises(InputError, match=re.escape("takes an input of shape (1, 3, 16, 16), but got (1, 3, 8, 16)")):
        RUNTIME.open_session(files[0], 1)(np.ascontiguousarray(image.numpy()[:, :, :8]))[0]
    files[1].unlink()
    with pytest.raises(InputError, match=r"fused\.xml cannot be read by OpenVINO .* Copy it and its \.bin again"):
        RUNTIME.open_session(files[0], 1)


def test_an_operation_that_cannot_be_converted_is_told(unsupported, spec, tmp_path):
    with pytest.raises(StageError, match=r"OpenVINO cannot convert the network: .* or leave this target out"):
        BACKEND.export(unsupported, [tmp_path / "x.xml", tmp_path / "x.bin"], spec())


def test_it_is_timed_here_and_told_layer_by_layer(checked_toy, artifacts, tmp_path, capsys):
    from pipeline.config.stages import BenchSettings
    from pipeline.config.targets import Bench

    folder = checked_toy("openvino", "fp32")
    quick = Bench(threads=[1], warmup_seconds=0, min_runs=10, max_seconds=0.01, target_width=10)
    bench.run(
        BenchSettings(backend="openvino", bench=quick),
        manifest=folder / "manifest.json", check=folder / "check.json",
        files=[folder / name for name in BACKEND.file_names(["fused"])],
        fused=artifacts.fused,
        output=tmp_path / "bench.json", profile=tmp_path / "profile.json",
    )  # fmt: skip
    document, profile = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("bench", "profile"))
    assert document["status"] == "ok" and document["forms"]["fused"]["latency_ms"]["p50"] > 0
    assert document["conditions"]["versions"]["openvino"]
    assert profile["named"] and sum(one["kind"] == "convolution" for one in profile["operations"]) == 3
    assert "fused" in capsys.readouterr().out


def test_a_bundle_tests_itself(checked_toy, pack, tmp_path):
    made = pack(checked_toy("openvino", "int8", "quantized"))
    made.unpack(tmp_path / "installed")
    done = subprocess.run([sys.executable, "selftest.py"], cwd=tmp_path / "installed", capture_output=True, text=True)
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["status"], told["runtime"]) == ("ok", "OpenVINO"), done.stderr
    shutil.rmtree(tmp_path / "installed")
