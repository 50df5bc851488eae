"""Nothing is built twice, and nothing stale is used: what starts a job, and what does not."""

import os
import shutil
import subprocess
import sys
from collections import Counter

import pytest

from pipeline.artifacts import digests

pytestmark = pytest.mark.slow


def assert_nothing_to_do(run):
    assert run.code == 0, run.output
    assert run.jobs == Counter()


def test_nothing_to_do(clone):
    assert_nothing_to_do(clone.snakemake("all"))


def test_a_touched_checkpoint_starts_no_job(clone):
    os.utime(clone.folder / "artifacts/toy/checkpoint.safetensors")
    assert_nothing_to_do(clone.snakemake("all"))


def files_of(clone):
    """Date and content of each file of a clone, but Snakemake's own notes and compiled modules."""
    files = [path for path in clone.folder.rglob("*") if path.is_file()]
    seen = [path for path in files if not {".snakemake", "__pycache__"} & set(path.parts)]
    return {path: (path.stat().st_mtime_ns, path.stat().st_ctime_ns, digests.digest(path)) for path in seen}


def test_a_dry_run_changes_no_file_and_says_what_will_be_done(clone, tmp_path):
    """Where there is nothing to do, and where a file was replaced by an older one and a bundle deleted."""
    bundle, wanted = "targets/executorch/toy/bundle.json", ("all", "targets/executorch/toy/bundle.json")
    assert clone.snakemake(bundle).code == 0
    for old in (False, True):
        if old:
            another = train_another(clone, tmp_path)
            os.utime(another, (1_000_000_000, 1_000_000_000))
            shutil.copy2(another, clone.folder / "artifacts/toy/checkpoint.safetensors")
            next((clone.folder / "dist").glob("*.tar")).unlink()
        before = files_of(clone)
        told = clone.snakemake("-n", *wanted)
        assert told.code == 0, told.output
        assert files_of(clone) == before
        assert ({"bundle:executorch", "reparameterize"} <= set(told.jobs)) == old == (told.jobs != Counter())
    done = clone.snakemake("--cores", "2", *wanted)
    assert done.code == 0, done.output
    assert done.jobs == told.jobs
    assert_nothing_to_do(clone.snakemake(*wanted))


def test_a_bundle_that_is_gone_is_made_again_where_it_is_asked_for(clone):
    bundle = "targets/executorch/toy/bundle.json"
    assert clone.snakemake(bundle).jobs == {"bundle:executorch": 1}
    next((clone.folder / "dist").glob("*.tar")).unlink()
    before = files_of(clone)
    assert clone.snakemake("-n", bundle).jobs == {"bundle:executorch": 1}
    assert_nothing_to_do(clone.snakemake("all"))
    assert files_of(clone) == before
    assert clone.snakemake(bundle).jobs == {"bundle:executorch": 1}
    assert_nothing_to_do(clone.snakemake("all", bundle))


@pytest.mark.parametrize(
    "module", ["pipeline/stages/train.py", "pipeline/backends/coreml/export.py", "repnets/fusion/affine_conv.py"]
)
def test_a_comment_starts_no_job(clone, module):
    with (clone.folder / module).open("a") as file:
        file.write("\n# a comment\n")
    assert_nothing_to_do(clone.snakemake("all"))


def test_a_line_of_the_core_ml_backend_rebuilds_core_ml_alone(clone):
    with (clone.folder / "pipeline/backends/coreml/export.py").open("a") as file:
        file.write("\n_NEW = 1\n")
    run = clone.snakemake("all")
    assert run.code == 0, run.output
    assert set(run.jobs) == {"export:coreml", "check:coreml", "bench:coreml", "summarize:coreml", "report"}
    assert "built" in clone.logs()["logs/toy/coreml/export.log"]


def test_a_line_of_the_fuse_engine_does_not_train_again(clone):
    with (clone.folder / "repnets/fusion/engine.py").open("a") as file:
        file.write("\n_NEW = 1\n")
    run = clone.snakemake("--cores", "2", "all")
    assert run.code == 0, run.output
    assert {"reparameterize", "verify"} <= set(run.jobs)
    assert "train" not in run.jobs


def train_another(clone, tmp_path):
    """A checkpoint of the same network with other weights."""
    import torch

    from pipeline.models import checkpoints

    state, header = checkpoints.read(clone.folder / "artifacts/toy/checkpoint.safetensors")
    name = next(name for name, tensor in state.items() if tensor.dim() == 4)
    state[name] = state[name] + 0.001 * torch.randn(state[name].shape, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "another.safetensors"
    checkpoints.write(path, state, header)
    return path


def test_a_checkpoint_replaced_by_an_older_file_is_noticed(clone, tmp_path):
    another = train_another(clone, tmp_path)
    os.utime(another, (1_000_000_000, 1_000_000_000))
    shutil.copy2(another, clone.folder / "artifacts/toy/checkpoint.safetensors")
    files = [clone.folder / name for name in ("artifacts/toy/fused.pt2", "targets/executorch/toy/fused.pte")]
    before = [digests.digest(file) for file in files]
    planned = clone.snakemake("--dry-run", "all")
    rebuilt = {
        f"{stage}:{target}" for stage in ("export", "check", "bench") for target in ("coreml", "tensorrt", "executorch")
    }
    assert {"reparameterize", "verify", "report"} | rebuilt <= set(planned.jobs), planned.output
    run = clone.snakemake("--cores", "2", "targets/executorch/toy/check.json")
    assert run.code == 0, run.output
    assert set(run.jobs) == {"reparameterize", "verify", "export:executorch", "check:executorch"}
    assert "reparameterize: built" in clone.logs()["logs/toy/reparameterize.log"]
    assert all(digests.digest(file) != was for file, was in zip(files, before, strict=True))


def test_the_users_own_checkpoint_replaced_by_an_older_file_is_noticed(clone, tmp_path):
    own = tmp_path / "mine.safetensors"
    shutil.copy(clone.folder / "artifacts/toy/checkpoint.safetensors", own)
    config = (
        (clone.folder / "config.yaml").read_text().replace("{toy: }", f"{{mine: {{arch: toy, checkpoint: {own}}}}}")
    )
    (clone.folder / "config.yaml").write_text(config)
    assert clone.snakemake("artifacts/mine/verify.json").code == 0
    another = train_another(clone, tmp_path)
    os.utime(another, (1_000_000_000, 1_000_000_000))
    shutil.copy2(another, own)
    run = clone.snakemake("artifacts/mine/verify.json")
    assert set(run.jobs) == {"adopt", "reparameterize", "verify"}, run.output


def remove_what_was_built(clone):
    for path in (clone.folder / "artifacts", clone.folder / "logs", clone.folder / ".snakemake"):
        shutil.rmtree(path)
    for path in clone.folder.glob("targets/*/toy"):
        shutil.rmtree(path)
    for path in [*clone.folder.glob("targets/*/bench.json"), clone.folder / "report.md"]:
        path.unlink()


def test_everything_comes_out_of_the_store_when_all_else_is_gone(clone):
    kept = {path: digests.digest(path) for path in clone.folder.glob("targets/*/*/*")}
    remove_what_was_built(clone)
    run = clone.snakemake("--cores", "2", "all")
    assert run.code == 0, run.output
    logs = {name: text for name, text in clone.logs().items() if "report" not in name and "summarize" not in name}
    assert sum("reference" in name for name in logs) == 1
    assert len(logs) == 4 + 1 + 3 * 3
    assert [name for name, text in logs.items() if "from the store" not in text] == []
    assert {path: digests.digest(path) for path in kept} == kept


def test_a_flipped_byte_in_the_store_is_noticed_and_rebuilt(clone):
    remove_what_was_built(clone)
    (stored,) = clone.store.glob("objects/*/fused/fused.pt2")
    content = bytearray(stored.read_bytes())
    content[len(content) // 2] ^= 1
    stored.write_bytes(content)
    run = clone.snakemake("artifacts/toy/verify.json")
    assert run.code == 0, run.output
    log = clone.logs()["logs/toy/reparameterize.log"]
    assert "thrown away, building again" in log
    assert "reparameterize: built" in log


def test_two_runs_at_once_share_a_store(built, tmp_path):
    shared = tmp_path / "store"
    clones = [built.copy(tmp_path / name, shared) for name in ("one", "two")]
    for clone in clones:
        remove_what_was_built(clone)
    runs = [
        subprocess.Popen(
            clone.command("--cores", "1", "targets/executorch/toy/check.json"),
            cwd=clone.folder,
            env=clone.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for clone in clones
    ]
    outputs = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    built_now = [
        sum(f"{stage}: built" in text for clone in clones for text in clone.logs().values())
        for stage in ("train", "reparameterize", "export", "check")
    ]
    assert built_now == [1, 1, 1, 1]
    one, two = (digests.digest(clone.folder / "targets/executorch/toy/fused.pte") for clone in clones)
    assert one == two


def test_python_of_this_environment_runs_the_stages(clone):
    """`.venv/bin/snakemake` works without an activated environment."""
    environment = {**clone.environment, "PATH": os.defpath}
    (clone.folder / "report.md").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "report.md"],
        cwd=clone.folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
