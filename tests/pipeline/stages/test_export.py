"""The stage that exports: the files of a target, and the manifest beside them."""

import json

import numpy as np
import pytest

from pipeline import backends
from pipeline.artifacts import digests
from pipeline.config.stages import ExportSettings
from pipeline.stages import export


def run_export(artifacts, folder, **changes):
    settings = {
        "target": "phone", "model": "toy", "backend": "executorch", "precision": "fp32", "forms": ("fused",),
        "batch": 1, "image_size": None, "options": {}, **changes,
    }  # fmt: skip
    export.run(
        ExportSettings(**settings),
        checkpoint=artifacts.checkpoint,
        fused=artifacts.fused,
        verify=artifacts.verify,
        manifest=folder / "manifest.json",
    )
    return json.loads((folder / "manifest.json").read_text())


def test_the_manifest(artifacts, tmp_path):
    manifest = run_export(artifacts, tmp_path / "toy")
    assert manifest["forms"]["fused"]["files"]["fused.pte"] == {
        "sha256": digests.digest(tmp_path / "toy" / "fused.pte"),
        "size_bytes": (tmp_path / "toy" / "fused.pte").stat().st_size,
    }
    assert manifest["input"] == {"name": "image", "shape": [1, 3, 32, 32], "free": {}, "dtype": "float32"}
    assert manifest["outputs"] == [{"name": "logits", "shape": [1, 10], "dtype": "float32"}]
    assert manifest["preprocessing"]["classes"] == [str(digit) for digit in range(10)]
    assert manifest["lineage"]["checkpoint"] == digests.digest(artifacts.checkpoint)
    assert manifest["lineage"]["fused"] == digests.digest(artifacts.fused)
    assert manifest["versions"]["executorch"]


def test_no_baseline_no_branched_file(artifacts, tmp_path):
    run_export(artifacts, tmp_path / "toy")
    assert sorted(path.name for path in (tmp_path / "toy").iterdir()) == ["fused.pte", "manifest.json"]


@pytest.mark.parametrize(("batch", "image_size"), [(3, None), (1, 48)])
def test_batch_and_image_size_of_the_target(artifacts, tmp_path, batch, image_size):
    manifest = run_export(artifacts, tmp_path / "toy", batch=batch, image_size=image_size)
    side = image_size or 32
    assert manifest["input"]["shape"] == [batch, 3, side, side]


def test_the_same_program_gives_the_same_files(artifacts, tmp_path, monkeypatch):
    first = run_export(artifacts, tmp_path / "one")
    monkeypatch.setenv("REPNETS_STORE", str(tmp_path / "another store"))
    assert run_export(artifacts, tmp_path / "two") == first


def test_the_manifest_tells_which_batches_a_file_takes(artifacts, tmp_path):
    options = {"dynamic_batch": {"min": 1, "opt": 2, "max": 5}}
    manifest = run_export(artifacts, tmp_path / "toy", backend="onnx", options=options)
    assert manifest["input"]["free"] == {"batch": {"min": 1, "max": 5}}
    run = backends.load("onnx").runtime.open_session(tmp_path / "toy" / "fused.onnx", 1)
    for batch in (1, 2, 5):
        assert run(np.zeros((batch, 3, 32, 32), np.float32))[0].shape == (batch, 10)
