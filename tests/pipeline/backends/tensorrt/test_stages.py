"""Targets through the stages themselves: of an open batch, and of int8."""

import json

import pytest

from pipeline import backends
from pipeline.backends.tensorrt.options import Options
from pipeline.config.stages import ExportSettings
from pipeline.stages import export

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has wheels for Linux x86-64 and Windows alone")


@pytest.mark.slow
def test_an_open_batch_is_exported_and_checked_at_the_targets(artifacts, run_check, tmp_path):
    options = Options(dynamic_batch={"min": 1, "opt": 4, "max": 8}).model_dump(mode="json")
    folder = tmp_path / "targets" / "server" / "toy"
    settings = ExportSettings(
        target="server", model="toy", backend="tensorrt", precision="fp16", forms=("fused", "branched"), batch=3,
        image_size=None, options=options,
    )  # fmt: skip
    given = {"fused": artifacts.fused, "verify": artifacts.verify}
    export.run(settings, checkpoint=artifacts.checkpoint, manifest=folder / "manifest.json", **given)
    names = backends.file_names("tensorrt", ("fused", "branched"))
    assert sorted(names) == sorted(path.name for path in folder.iterdir() if path.name != "manifest.json")
    checked = run_check(folder, "tensorrt")
    assert checked["images"] == 359 and checked["forms"]["fused"]["converter"]["max_relative_error"] < 1e-5
    assert "--optShapes=image:4x3x32x32" in (folder / "build_engine.sh").read_text()


@pytest.mark.slow
def test_int8_is_built_and_checked(artifacts, quantized, run_check, tmp_path):
    folder = tmp_path / "targets" / "server-int8" / "toy"
    settings = ExportSettings(
        target="server-int8", model="toy", backend="tensorrt", precision="int8", forms=("quantized",), batch=3,
        image_size=None,
        options=Options(compute_capabilities=("8.6",), dynamic_batch={"min": 1, "opt": 4, "max": 8}).model_dump(
            mode="json"
        ),
    )  # fmt: skip
    given = {"fused": artifacts.fused, "verify": artifacts.verify, "quantized": quantized}
    export.run(settings, checkpoint=artifacts.checkpoint, manifest=folder / "manifest.json", **given)
    facts = json.loads((folder / "manifest.json").read_text())["forms"]["quantized"]["facts"]
    assert facts["maker"] and (folder / "quantized.engine").stat().st_size > 100_000
    found = run_check(folder, "tensorrt", quantized=quantized)["forms"]["quantized"]
    assert (found["census"]["int8"], found["census"]["convolution"]) == (4, 3)
    assert found["precision"]["max_relative_error"] <= 0.05
