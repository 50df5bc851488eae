"""The gate between a program and the files made of it: what it proves, and what it catches."""

import json
import shutil

import pytest

from pipeline import backends, check, export, reparameterize, store
from pipeline.config import Check, CheckSettings, ExportSettings, NoSettings
from pipeline.errors import GateError


@pytest.fixture(scope="module")
def exported(artifacts, tmp_path_factory):
    """The .pte files of the toy network, fused and branched, and their manifest."""
    folder = tmp_path_factory.mktemp("targets") / "phone" / "toy"
    patch = pytest.MonkeyPatch()
    patch.setenv("REPNETS_STORE", str(folder / "store"))
    export.run(
        ExportSettings(
            target="phone", model="toy", backend="executorch", precision="fp32", forms=("fused", "branched"),
            batch=1, image_size=None, options={},
        ),
        checkpoint=artifacts.checkpoint, fused=artifacts.fused, verify=artifacts.verify,
        manifest=folder / "manifest.json",
    )  # fmt: skip
    patch.undo()
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    """A copy of the exported files, to be damaged."""
    shutil.copytree(exported, tmp_path / "toy", ignore=shutil.ignore_patterns("store"))
    return tmp_path / "toy"


def run_check(artifacts, folder, fused=None, **gates):
    check.run(
        CheckSettings(backend="executorch", check=Check(**gates)),
        manifest=folder / "manifest.json",
        files=[folder / name for name in backends.file_names("executorch", ("fused", "branched"))],
        fused=fused or artifacts.fused,
        verify=artifacts.verify,
        split=artifacts.split,
        output=folder / "check.json",
    )
    return json.loads((folder / "check.json").read_text())


def rewrite_manifest(folder, name):
    """Make the manifest believe the file as it is now."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["forms"][name.partition(".")[0]]["files"][name]["sha256"] = store.digest(folder / name)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_what_is_written(artifacts, folder):
    checked = run_check(artifacts, folder)
    assert checked["checked_by"] == "ExecuTorch"
    assert checked["images"] == 359
    assert checked["forms"]["fused"]["agreement"] == 1.0
    assert 0 < checked["forms"]["fused"]["max_relative_error"] < 1e-5
    assert checked["forms"]["fused"]["census"]["convolution"] == 3
    assert checked["accuracy"]["file"] == checked["accuracy"]["fused"]


def test_a_file_that_is_not_the_manifests_is_caught(artifacts, folder):
    shutil.copy(folder / "branched.pte", folder / "fused.pte")
    with pytest.raises(GateError, match="is not the file that its manifest describes"):
        run_check(artifacts, folder)


def test_a_branched_file_under_the_fused_name_is_caught(artifacts, folder):
    shutil.copy(folder / "branched.pte", folder / "fused.pte")
    rewrite_manifest(folder, "fused.pte")
    with pytest.raises(GateError, match=r"holds 7 convolutions .* but the fused network has 3"):
        run_check(artifacts, folder)


def test_the_file_of_other_weights_is_caught(artifacts, folder, tmp_path):
    """The very same layers with other weights: only the numbers tell."""
    from pipeline import checkpoints

    state, header = checkpoints.read(artifacts.checkpoint)
    name = next(name for name, tensor in state.items() if tensor.dim() == 4)
    state[name] = state[name] * 1.01
    checkpoints.write(tmp_path / "other.safetensors", state, header)
    reparameterize.run(
        NoSettings(),
        checkpoint=tmp_path / "other.safetensors",
        fused=tmp_path / "other.pt2",
        report=tmp_path / "fuse.json",
    )
    with pytest.raises(GateError, match=r"fused\.pte: logit \d of validation image \d+ is .* tolerance for fp32"):
        run_check(artifacts, folder, fused=tmp_path / "other.pt2")


def test_the_tolerance_is_held(artifacts, folder):
    with pytest.raises(GateError, match="tolerance for fp32 is 1e-30"):
        run_check(artifacts, folder, tolerance=1e-30)


def test_a_truncated_file_is_caught(artifacts, folder):
    content = (folder / "fused.pte").read_bytes()
    (folder / "fused.pte").write_bytes(content[: len(content) // 2])
    rewrite_manifest(folder, "fused.pte")
    with pytest.raises(Exception, match=r"fused\.pte"):
        run_check(artifacts, folder)
