"""A target of an open batch through the stages themselves."""

import json

import pytest

from pipeline import backends, check, export
from pipeline.config import Check, CheckSettings, ExportSettings
from pipeline.options import TensorRTOptions

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has wheels for Linux x86-64 and Windows alone")


@pytest.mark.slow
def test_an_open_batch_is_exported_and_checked_at_the_targets(artifacts, tmp_path):
    options = TensorRTOptions(dynamic_batch={"min": 1, "opt": 4, "max": 8}).model_dump(mode="json")
    folder = tmp_path / "targets" / "server" / "toy"
    settings = ExportSettings(
        target="server", model="toy", backend="tensorrt", precision="fp16", forms=("fused", "branched"), batch=3,
        image_size=None, options=options,
    )  # fmt: skip
    given = {"fused": artifacts.fused, "verify": artifacts.verify}
    export.run(settings, checkpoint=artifacts.checkpoint, manifest=folder / "manifest.json", **given)
    names = backends.file_names("tensorrt", ("fused", "branched"))
    assert sorted(names) == sorted(path.name for path in folder.iterdir() if path.name != "manifest.json")
    check.run(
        CheckSettings(backend="tensorrt", check=Check()),
        manifest=folder / "manifest.json",
        files=[folder / name for name in names],
        split=artifacts.split,
        output=folder / "check.json",
        **given,
    )
    checked = json.loads((folder / "check.json").read_text())
    assert checked["images"] == 359 and checked["forms"]["fused"]["converter"]["max_relative_error"] < 1e-5
    assert "--optShapes=image:4x3x32x32" in (folder / "build_engine.sh").read_text()
