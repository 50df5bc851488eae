"""The real DAG: what it leaves behind, and what a mistake looks like from outside."""

import json
import re
import shutil

import pytest

pytestmark = pytest.mark.slow
TARGETS = ("tensorrt", "coreml", "executorch")


def read(path):
    return json.loads(path.read_text())


def test_every_target_has_a_bench(built):
    status = {target: read(built.folder / "targets" / target / "bench.json")["status"] for target in TARGETS}
    assert status["executorch"] == "ok"
    assert set(status.values()) <= {"ok", "unavailable"}


def test_branched_fused_and_file_agree_on_every_validation_image(built):
    verified = read(built.folder / "artifacts" / "toy" / "verify.json")
    checked = read(built.folder / "targets" / "executorch" / "toy" / "check.json")
    assert verified["agreement"] == 1.0
    assert verified["images"] == checked["images"] >= 300
    assert [checked["forms"][form]["agreement"] for form in ("fused", "branched")] == [1.0, 1.0]
    assert checked["accuracy"]["file"] == verified["accuracy"]["fused"] == verified["accuracy"]["branched"]


def test_the_fused_file_holds_no_branch(built):
    for target in TARGETS:
        forms = read(built.folder / "targets" / target / "toy" / "check.json")["forms"]
        assert (forms["fused"]["census"]["convolution"], forms["fused"]["census"]["batch_norm"]) == (3, 0)
        assert forms["branched"]["census"]["convolution"] >= 6  # XNNPACK makes one of the identity's batch norm


def test_the_manifest_describes_the_files(built):
    from pipeline.artifacts import digests

    for target in TARGETS:
        folder = built.folder / "targets" / target / "toy"
        manifest = read(folder / "manifest.json")
        assert manifest["lineage"]["checkpoint"] == digests.digest(
            built.folder / "artifacts/toy/checkpoint.safetensors"
        )
        for form in manifest["forms"].values():
            for name, facts in form["files"].items():
                assert digests.digest(folder / name) == facts["sha256"]


def test_the_table_is_on_the_terminal(built, clone):
    (clone.folder / "report.md").unlink()
    run = clone.snakemake("--cores", "2", "all")
    assert run.code == 0
    assert (clone.folder / "report.md").read_text() in run.output


def test_one_target_alone_without_cores(clone):
    (clone.folder / "targets/tensorrt/bench.json").unlink()
    run = clone.snakemake("targets/tensorrt/bench.json")
    assert run.code == 0, run.output
    assert set(run.jobs) == {"summarize:tensorrt"}


def test_pictures_are_made_on_demand(clone):
    assert not (clone.folder / "artifacts/toy/structure.svg").exists()
    run = clone.snakemake("artifacts/toy/structure.svg")
    assert run.code == 0, run.output
    assert set(run.jobs) == {"draw"}
    assert all((clone.folder / f"artifacts/toy/{name}.svg").stat().st_size for name in ("structure", "block"))
    run = clone.snakemake("artifacts/toy/samples.png")
    assert run.code == 0, run.output
    assert set(run.jobs) == {"samples"} and (clone.folder / "artifacts/toy/samples.png").stat().st_size


def test_a_new_target_is_a_new_folder(clone):
    folder = clone.folder / "targets" / "phone"
    folder.mkdir()
    (folder / "target.yaml").write_text(
        "{backend: executorch, precision: fp32, baseline: none, batch: 2, bench: {min_runs: 10, launches: [1, 1]}}"
    )
    run = clone.snakemake("targets/phone/bench.json")
    assert run.code == 0, run.output
    assert not (folder / "toy" / "branched.pte").exists()
    bench = read(folder / "toy" / "bench.json")
    assert "speedup" not in bench or bench["speedup"] is None
    assert read(folder / "toy" / "manifest.json")["input"]["shape"] == [2, 3, 32, 32]


def test_a_mistake_in_the_config_ends_with_2_and_says_where(clone):
    (clone.folder / "config.yaml").write_text("models:\n  toi:\n")
    run = clone.snakemake("all")
    assert run.code == 2
    assert "config.yaml, line 2: there is no network `toi`; did you mean `toy`?" in run.output
    assert "Traceback" not in run.output


def test_a_failed_gate_stops_the_build_and_says_why(clone):
    run = clone.snakemake("all", "--config", "verify={float64_tolerance: 1.0e-30}")
    assert run.code == 1
    assert "of the largest logit" in run.output
    assert not (clone.folder / "artifacts/toy/verify.json").exists()
    assert set(run.jobs) == {"verify"}


def test_the_users_checkpoint_instead_of_training(clone, tmp_path):
    own = tmp_path / "mine.safetensors"
    own.write_bytes((clone.folder / "artifacts/toy/checkpoint.safetensors").read_bytes())
    config = (
        (clone.folder / "config.yaml").read_text().replace("{toy: }", f"{{mine: {{arch: toy, checkpoint: {own}}}}}")
    )
    (clone.folder / "config.yaml").write_text(config)
    run = clone.snakemake("artifacts/mine/verify.json")
    assert run.code == 0, run.output
    assert set(run.jobs) == {"adopt", "reparameterize", "verify"}


def test_a_checkpoint_that_came_folded_goes_straight_to_export(clone, tmp_path):
    """Beside a network with branches: the files of the branched form are there for one alone.

    One target is built. What the others would do is read off a dry run: they export a fused network as any other.
    """
    import torch

    from repnets.checkpoints.layouts import convert

    own = tmp_path / "deploy.pth"
    torch.save({"model": convert(torch.export.load(clone.folder / "artifacts/toy/fused.pt2").state_dict, "toy")}, own)
    config = (clone.folder / "config.yaml").read_text()
    config = config.replace("{toy: }", f"{{toy: , mine: {{arch: toy, checkpoint: {own}}}}}")
    (clone.folder / "config.yaml").write_text(config)
    planned = clone.snakemake("--dry-run", "all")
    assert {"adopt", "reparameterize", "verify", "report"} <= set(planned.jobs), planned.output
    assert {planned.jobs[f"{stage}:{target}"] for stage in ("export", "check", "bench") for target in TARGETS} == {1}
    exports = [line for line in planned.output.splitlines() if "python -m pipeline export" in line]
    assert len(exports) == 3 and all('"model":"mine"' in line and '"forms":["fused"]' in line for line in exports)

    quick, before = re.search(r"    bench: (.*)", config)[1], config.partition("targets:")[0]
    (clone.folder / "config.yaml").write_text(f"{before}targets:\n  executorch: {{bench: {quick}}}\n")
    for target in ("tensorrt", "coreml"):
        shutil.rmtree(clone.folder / "targets" / target)
    run = clone.snakemake("--cores", "2", "all")
    assert run.code == 0, run.output
    folder = clone.folder / "targets" / "executorch"
    assert list((folder / "toy").glob("branched.*")) and not list((folder / "mine").glob("branched.*"))
    assert list(read(folder / "mine" / "manifest.json")["forms"]) == ["fused"]
    bench = read(folder / "bench.json")["models"]["mine"]
    assert (list(bench["forms"]), bench["speedup"], bench["accuracy"]["branched"]) == (["fused"], None, None)
    toy, mine = (read(folder / name / "bench.json")["accuracy"] for name in ("toy", "mine"))
    assert (mine["file"], mine["fused"]) == (toy["file"], toy["fused"])
    assert "mine: came folded" in (clone.folder / "report.md").read_text()
    assert clone.snakemake("all").jobs == {}


def test_the_int8_files_of_every_target_are_made_of_one_program(new_clone, tmp_path):
    int8 = [f"{target}-int8" for target in TARGETS]
    clone = new_clone(tmp_path / "clone", tmp_path / "store", targets=(*TARGETS, *int8))
    run = clone.snakemake("--dry-run", *(f"targets/{target}/bench.json" for target in int8))
    assert run.code == 0, run.output
    once = ("split", "train", "reparameterize", "verify", "quantize")
    each = [f"{stage}:{target}" for stage in ("export", "check", "bench", "summarize") for target in int8]
    assert run.jobs == dict.fromkeys([*once, *each], 1)
    assert run.output.count("--quantized artifacts/toy/quantized.pt2") == 1 + 3 * len(int8)
    assert run.output.count('"forms":["quantized","fused"]') == len(int8)
