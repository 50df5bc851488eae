"""A network that came folded goes through the stages without a branched form."""

import json
from pathlib import Path

import pytest
import torch

from pipeline.config.project import Verify
from pipeline.config.stages import AdoptSettings, ExportSettings, NoSettings, RecalibrateSettings
from pipeline.errors import InputError
from pipeline.models import checkpoints
from pipeline.stages import adopt, export, recalibrate, reparameterize, verify
from repnets.checkpoints.layouts import convert

pytestmark = pytest.mark.slow
EXPORT = {
    "target": "phone", "model": "toy", "backend": "onnx", "precision": "fp32", "batch": 1, "image_size": None,
    "options": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def folded(artifacts, tmp_path_factory) -> Path:
    """What the stages made of a deploy checkpoint: checkpoint.safetensors, fused.pt2, fuse.json, verify.json."""
    folder = tmp_path_factory.mktemp("folded")
    source = folder / "mine.pth"
    torch.save(convert(torch.export.load(artifacts.fused).state_dict, "toy"), source)
    checkpoint, fused = folder / "checkpoint.safetensors", folder / "fused.pt2"
    patch = pytest.MonkeyPatch()
    patch.setenv("REPNETS_STORE", str(folder / "store"))
    try:
        settings = AdoptSettings(arch="toy", image_size=32, interpolation="bilinear")
        adopt.run(settings, source=source, split=artifacts.split, checkpoint=checkpoint)
        reparameterize.run(
            NoSettings(), checkpoint=checkpoint, split=artifacts.split, fused=fused, report=folder / "fuse.json"
        )
        verify.run(Verify(), checkpoint=checkpoint, split=artifacts.split, fused=fused, output=folder / "verify.json")
    finally:
        patch.undo()
    return folder


def run_export(folded, folder, forms):
    export.run(
        ExportSettings(**EXPORT, forms=forms),
        checkpoint=folded / "checkpoint.safetensors",
        fused=folded / "fused.pt2",
        verify=folded / "verify.json",
        manifest=folder / "manifest.json",
    )
    return json.loads((folder / "manifest.json").read_text())


def test_there_is_nothing_to_fold(artifacts, folded):
    report = json.loads((folded / "fuse.json").read_text())
    assert report["regions"] == []
    got, want = (torch.export.load(path / "fused.pt2") for path in (folded, artifacts.fused.parent))
    assert got.state_dict.keys() == want.state_dict.keys()
    assert all(torch.equal(got.state_dict[name], tensor) for name, tensor in want.state_dict.items())


def test_it_is_proved_without_a_branched_accuracy(artifacts, folded):
    got, want = (json.loads((path / "verify.json").read_text()) for path in (folded, artifacts.verify.parent))
    assert (got["form"], want["form"]) == ("deploy", "training")
    assert (got["status"], got["agreement"]) == ("ok", 1.0)
    assert got["accuracy"] == {"branched": None, "fused": want["accuracy"]["fused"], "metric": "top-1"}
    assert max(got["float64"]["max_relative_error"].values()) == 0


def test_the_fused_form_alone_is_exported(folded, tmp_path):
    manifest = run_export(folded, tmp_path / "toy", ("fused",))
    assert sorted(path.name for path in (tmp_path / "toy").iterdir()) == ["fused.onnx", "manifest.json"]
    assert manifest["lineage"]["form"] == "deploy"
    assert manifest["lineage"]["accuracy"]["branched"] is None


def test_a_branched_form_is_refused(folded, tmp_path):
    with pytest.raises(InputError, match=r"folded before it came here, so there is no branched form .* Export `fused`"):
        run_export(folded, tmp_path / "toy", ("fused", "branched"))
    assert not (tmp_path / "toy").exists()


def test_there_are_no_batch_norms_to_recalibrate(artifacts, folded, tmp_path):
    paths = {"checkpoint": folded / "checkpoint.safetensors", "split": artifacts.split}
    with pytest.raises(InputError, match=r"and its batch norms with it.* Take `recalibrate_bn` away"):
        recalibrate.run(RecalibrateSettings(recalibrate_bn=64), **paths, output=tmp_path / "out.safetensors")


def test_the_engine_counts_as_the_code_of_its_network_alone(artifacts, folded):
    assert checkpoints.code_modules(folded / "checkpoint.safetensors") == ("repnets.networks.toy", "repnets.deploy")
    assert checkpoints.code_modules(artifacts.checkpoint) == ("repnets.networks.toy",)
