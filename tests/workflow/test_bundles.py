"""Bundles by the real rules: on demand, once, again where one was deleted, and the same in another clone."""

import json
import shutil
import subprocess

import pytest

from pipeline.deploy import bundle_file

pytestmark = pytest.mark.slow


def pack(clone, *words):
    run = clone.snakemake("--cores", "2", "bundles", *words)
    assert run.code == 0, run.output
    return run


def bundles(clone):
    return {path.name: path.read_bytes() for path in (clone.folder / "dist").glob("*.tar")}


def test_bundles_are_made_on_demand_once_and_are_the_same_in_another_clone(built, packed, clone):
    assert not (built.folder / "dist").exists()
    made = bundles(packed)
    assert sorted(name.rpartition("-")[0] for name in made) == ["toy-coreml", "toy-executorch", "toy-tensorrt"]
    for path in (packed.folder / "dist").glob("*.tar"):
        assert bundle_file.open_bundle(path).manifest.model == "toy"

    run = pack(clone)
    assert run.jobs == {"bundle:tensorrt": 1, "bundle:coreml": 1, "bundle:executorch": 1}
    assert bundles(clone) == made
    assert [log for name, log in clone.logs().items() if "bundle" in name and "built" not in log] == []
    assert pack(clone).jobs == {}


def test_a_deleted_bundle_comes_back_out_of_the_store_and_nothing_else_runs(packed, tmp_path):
    clone, made = packed.copy(tmp_path), bundles(packed)
    for path in (clone.folder / "dist").glob("toy-coreml-*"):
        path.unlink()
    assert pack(clone).jobs == {"bundle:coreml": 1} and bundles(clone) == made
    assert "bundle: from the store" in clone.logs()["logs/toy/coreml/bundle.log"]
    shutil.rmtree(clone.folder / "dist")
    pack(clone)
    assert bundles(clone) == made


def test_a_key_in_the_configuration_signs_and_changes_no_byte(packed, tmp_path):
    clone = packed.copy(tmp_path)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    run = pack(clone, "--config", f"bundle={{signing_key: {tmp_path / 'key'}}}")
    assert bundles(clone) == bundles(packed) and sum(run.jobs.values()) == 3
    told = json.loads((clone.folder / "targets/executorch/toy/bundle.json").read_text())
    assert (clone.folder / told["signature"]).read_text().startswith("-----BEGIN SSH SIGNATURE-----")
