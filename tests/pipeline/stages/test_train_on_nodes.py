"""Training by two processes that share no store, as on two machines: killed, resumed, out of step, of other settings.

Each node is a torchrun of its own with a $REPNETS_STORE of its own, on this machine; a mount namespace hides the store
of the first from the second.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.config.project import Training
from pipeline.config.stages import TrainSettings
from pipeline.models import checkpoints

PROJECT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.slow


def settings(arch: str = "toy", **changes) -> TrainSettings:
    training = {"epochs": 30, "batch_size": 32, "ema_decay": 0.9, **changes}
    return TrainSettings(arch=arch, image_size=16, interpolation="bilinear", training=Training(**training))


def words(folder: Path, split: Path, of: TrainSettings) -> list[str]:
    outputs = ["--checkpoint", str(folder / "checkpoint.safetensors"), "--metrics", str(folder / "metrics.jsonl")]
    return ["-m", "pipeline", "train", "--settings", of.model_dump_json(), "--split", str(split), *outputs]


RUNNING: list[subprocess.Popen] = []
HIDDEN = ["unshare", *([] if os.geteuid() == 0 else ["-r"]), "--mount", "sh", "-c"]
needs_namespaces = pytest.mark.skipif(
    subprocess.run([*HIDDEN, "mount -t tmpfs none /mnt"], capture_output=True).returncode != 0,
    reason="needs `unshare --mount` and mount, so that one node does not see the other's store",
)


def started(
    folder: Path, store: Path, torchrun: list[str], stage: list[str], hidden: Path | None = None
) -> subprocess.Popen:
    """A torchrun; in a mount namespace where an empty folder hides another one, if any."""
    for place in (folder, *filter(None, [hidden])):
        place.mkdir(parents=True, exist_ok=True)
    hide = [*HIDDEN, 'mount -t tmpfs none "$0" && exec "$@"', str(hidden)] if hidden else []
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "REPNETS_STORE": str(store), "PYTHONPATH": f"{PROJECT}:{folder}"
    }  # fmt: skip
    process = subprocess.Popen(
        [*hide, sys.executable, "-m", "torch.distributed.run", *torchrun, *stage],
        cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    RUNNING.append(process)
    return process


@pytest.fixture(autouse=True)
def _nothing_is_left_running():
    yield
    while RUNNING:
        process = RUNNING.pop()
        if process.poll() is None:
            kill(process)
            process.communicate()


def two_nodes(folder: Path, *stages: list[str]) -> list[subprocess.Popen]:
    """Both nodes of one training, started, each with its own command line of the stage."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    return [
        started(folder, folder / f"store-{rank}", [*where, "--node-rank", str(rank)], stage,
                hidden=folder / "store-0" if rank else None)
        for rank, stage in enumerate(stages)
    ]  # fmt: skip


def ended(*processes: subprocess.Popen) -> list[str]:
    """What each printed, once all have ended."""
    return [process.communicate()[0] for process in processes]


def kill(process: subprocess.Popen) -> None:
    """Kill a torchrun and the process that it started, without warning."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in (process.pid, *map(int, children)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def published(folder: Path) -> list[Path]:
    """What is there of a result: the outputs, and entries of trainings in the stores."""
    entries = [path for path in folder.glob("store*/objects/*/entry.json") if '"train"' in path.read_text()]
    return [*folder.glob("checkpoint*"), *folder.glob("metrics*"), *entries]


@pytest.fixture(scope="module")
def uninterrupted(few, tmp_path_factory) -> Path:
    """The folder of a training by two processes of one torchrun."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    run = started(folder, folder / "store", ["--standalone", "--nproc-per-node", "2"], words(folder, few, settings()))
    (output,) = ended(run)
    assert run.returncode == 0, output
    return folder


@needs_namespaces
@pytest.mark.parametrize("killed", ["one node", "both nodes"])
def test_nodes_without_a_common_store_resume_to_the_same_bytes(few, uninterrupted, tmp_path, killed):
    folder = tmp_path / "run"
    nodes = two_nodes(folder, *[words(folder, few, settings())] * 2)
    for line in nodes[0].stdout:
        if " epoch 3/30 " in line:
            break
    for node in reversed(nodes) if killed == "both nodes" else nodes[1:]:
        kill(node)
    outputs = ended(*nodes)
    assert nodes[0].returncode != 0, outputs
    assert published(folder) == []
    nodes = two_nodes(folder, *[words(folder, few, settings())] * 2)
    outputs = ended(*nodes)
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert "going on after epoch " in outputs[0] and " epoch 1/30 " not in outputs[0]
    name = "checkpoint.safetensors"
    assert (folder / name).read_bytes() == (uninterrupted / name).read_bytes()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 30


def test_the_header_tells_how_many_processes_trained(uninterrupted):
    header = checkpoints.read_header(uninterrupted / "checkpoint.safetensors")
    assert header.processes == 2


def test_processes_whose_weights_drift_apart_publish_nothing(few, tmp_path):
    """A network that changes a weight by itself, in one of the processes alone."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "own.py").write_text(
        textwrap.dedent("""
            import os
            import torch
            from torch import nn

            class Drifting(nn.Sequential):
                def forward(self, x):
                    if self.training and os.environ["RANK"] == "1":
                        with torch.no_grad():
                            self[-1].bias.add_(0.001)
                    return super().forward(x)

            def build(num_classes):
                return Drifting(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                                nn.Linear(8, num_classes))
        """)
    )
    stage = words(folder, few, settings("own:build", epochs=2))
    run = started(folder, folder / "store", ["--standalone", "--nproc-per-node", "2"], stage)
    (output,) = ended(run)
    assert run.returncode == 1
    assert "error: the processes are out of step after epoch 1: rank 1 has other weights than rank 0" in output
    assert published(folder) == []
    assert list(folder.glob("store/work/*/scratch/*")) == []  # nothing to go on from


@needs_namespaces
def test_nodes_of_other_settings_are_refused_before_they_train(few, tmp_path):
    folder = tmp_path / "run"
    stages = [words(folder, few, settings(epochs=1, learning_rate=rate)) for rate in (0.1, 0.2)]
    for output in ended(*two_nodes(folder, *stages)):
        assert "error: the processes do not train the same: rank 1 has another set of settings than rank 0" in output
        assert "epoch 1/1" not in output
    assert published(folder) == []


@needs_namespaces
def test_nodes_of_other_splits_are_refused_before_they_train(few, tmp_path):
    folder, other = tmp_path / "run", tmp_path / "split.json"
    other.write_text(json.dumps(json.loads(few.read_text()), indent=1))
    stages = [words(folder, split, settings(epochs=1)) for split in (few, other)]
    for output in ended(*two_nodes(folder, *stages)):
        assert "error: the processes do not train the same: rank 1 has another split than rank 0" in output
    assert published(folder) == []
