"""kill -9 in the middle: the next run goes on, and nothing half-written stands under a final name."""

import json
import os
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def kill_when(clone, arguments, ready):
    """Start snakemake, wait until `ready()`, and kill it and every stage with SIGKILL."""
    output = clone.folder / "killed.log"
    with output.open("w") as log:
        run = subprocess.Popen(
            clone.command(*arguments),
            cwd=clone.folder,
            env=clone.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while not ready():
            assert run.poll() is None, output.read_text()
            time.sleep(0.02)
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()


def test_killed_during_training(built, clone):
    """The run goes on from the last whole epoch, and ends with the weights of an undisturbed one."""
    config = (clone.folder / "config.yaml").read_text().replace("epochs: 3", "epochs: 4")
    (clone.folder / "config.yaml").write_text(config)
    log = clone.folder / "logs/toy/train.log"
    log.unlink()
    checkpoint = clone.folder / "artifacts/toy/checkpoint.safetensors"
    kill_when(clone, ["artifacts/toy/verify.json"], lambda: log.exists() and "epoch 2/4" in log.read_text())
    assert not checkpoint.exists()
    run = clone.snakemake("artifacts/toy/verify.json")
    assert run.code == 0, run.output
    assert "going on after epoch" in log.read_text()
    assert "epoch 1/4" not in log.read_text()
    epochs = [
        json.loads(line)["epoch"] for line in (clone.folder / "artifacts/toy/metrics.jsonl").read_text().splitlines()
    ]
    assert epochs == [1, 2, 3, 4]


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_snakemake_alone_ends_its_training(built, clone, by):
    config = (clone.folder / "config.yaml").read_text().replace("epochs: 3", "epochs: 400")
    (clone.folder / "config.yaml").write_text(config)
    log, output = clone.folder / "logs/toy/train.log", clone.folder / "output.log"
    log.unlink()
    with output.open("w") as said:
        run = subprocess.Popen(clone.command("artifacts/toy/checkpoint.safetensors"), cwd=clone.folder,
                               env=clone.environment, stdout=said, stderr=said, start_new_session=True)  # fmt: skip
    try:
        while not (log.exists() and "epoch 1/400" in log.read_text()):
            assert run.poll() is None, output.read_text()
            time.sleep(0.05)
        run.send_signal(by)
        run.wait(30)
        end = time.monotonic() + 30
        while subprocess.run(["pgrep", "-s", str(run.pid)], stdout=subprocess.DEVNULL).returncode == 0:
            assert time.monotonic() < end, "something of the run is still there"
            time.sleep(0.1)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    assert "Traceback" not in output.read_text() + log.read_text()
    assert clone.snakemake("artifacts/split.json").code == 0  # no lock is left


def test_killed_during_an_export(clone):
    with (clone.folder / "pipeline/backends/executorch/backend.py").open("a") as file:
        file.write("\n_NEW = 1\n")
    folder = clone.folder / "targets/executorch/toy"

    def exporting():
        return any(Path(path).name == "fused.pte" for path in clone.store.glob("work/*/entry/*/*"))

    kill_when(clone, ["targets/executorch/bench.json"], exporting)
    assert not (folder / "manifest.json").exists()
    assert not (folder / "branched.pte").exists()
    assert [path.name for path in folder.iterdir() if re.match(r"\..*\.[0-9a-f]{8}", path.name)] == []
    run = clone.snakemake("targets/executorch/bench.json")
    assert run.code == 0, run.output
    assert json.loads((folder / "bench.json").read_text())["status"] == "ok"
