"""bench on a device behind a real sshd: the same bench.json, by Python there or by a runner."""

import json
import shutil
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

from pipeline import bench, devices, export
from pipeline.config import Bench, BenchSettings, ExportSettings

QUICK = Bench(threads=[1], warmup_seconds=0, min_runs=10, max_seconds=0.01, target_width=10)
ACCURACY = {"branched": 0.91, "fused": 0.92, "file": 0.93}


@pytest.fixture(scope="module")
def exported(artifacts, tmp_path_factory):
    """Both forms of the toy network as .pte, with a check.json. Copy what you change."""
    folder = tmp_path_factory.mktemp("exported") / "toy"
    patch = pytest.MonkeyPatch()
    patch.setenv("REPNETS_STORE", str(folder.parent / "store"))
    try:
        settings = ExportSettings(
            target="board", model="toy", backend="executorch", precision="fp32", forms=("fused", "branched"), batch=1,
            image_size=None, options={},
        )  # fmt: skip
        paths = {"checkpoint": artifacts.checkpoint, "fused": artifacts.fused, "verify": artifacts.verify}
        export.run(settings, **paths, manifest=folder / "manifest.json")
    finally:
        patch.undo()
    checked = {"status": "ok", "checked_by": "ExecuTorch", "accuracy": ACCURACY}
    (folder / "check.json").write_text(json.dumps(checked))
    return folder


@pytest.fixture
def run_bench(exported, artifacts, tmp_path):
    """Runs the stage with these settings on a copy of the exported files; gives bench.json and profile.json."""

    def run(how=QUICK, **settings):
        folder = tmp_path / "toy"
        if not folder.exists():
            shutil.copytree(exported, folder)
        bench.run(
            BenchSettings(backend="executorch", bench=how, **settings),
            manifest=folder / "manifest.json",
            check=folder / "check.json",
            files=sorted(folder.glob("*.pte")),
            fused=artifacts.fused,
            checkpoint=artifacts.checkpoint,
            output=folder / "bench.json",
            profile=folder / "profile.json",
        )
        return tuple(json.loads((folder / name).read_text()) for name in ("bench.json", "profile.json"))

    return run


@pytest.fixture
def runner(tmp_path):
    """The runner, built on the device against ExecuTorch's own wheel. Needs g++."""
    wheel = Path(find_spec("executorch").submodule_search_locations[0])
    script = Path(devices.__file__).with_name("build_runner.sh")
    done = subprocess.run(["sh", script, wheel, tmp_path / "runner"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"repnets-runner executorch={metadata.version('executorch')}\n"), done
    return str(tmp_path / "runner")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the runner is built with g++")
def test_a_runner_does_where_python_has_no_runtime(ssh_device, run_bench, runner):
    got, profile = run_bench(device=ssh_device.url, runner=runner)
    assert (got["status"], list(got["forms"])) == ("ok", ["fused", "branched"])
    for entry in got["forms"].values():
        assert entry["latency_ms"]["n"] >= 10 and entry["load_ms"] > 0 and entry["peak_memory_bytes"] > 0
    assert got["conditions"]["versions"] == {"executorch": metadata.version("executorch")}
    assert [one["layer"] for one in profile["operations"] if one["layer"]] == [
        "stage1", "stage2", "stage3", "head.linear",
    ]  # fmt: skip
    assert (ssh_device.left(), list(ssh_device.tmp.iterdir())) == ([], [])


@pytest.mark.slow
def test_python_on_the_device_runs_the_files(ssh_device, run_bench, capsys):
    got, profile = run_bench(
        QUICK.model_copy(update={"sustained_seconds": 0.5}), device=ssh_device.url, device_python=sys.executable
    )
    assert (got["status"], got["reference"], got["accuracy"]["checked_by"]) == ("ok", None, "ExecuTorch")
    for entry in got["forms"].values():
        assert entry["latency_ms"]["n"] >= 10 and entry["load_ms"] > 0 and entry["peak_memory_bytes"] > 0
        assert entry["transfer_ms"] is None
    held = got["conditions"]
    assert held["versions"]["executorch"] and held["versions"]["python"] and held["cores"] >= 1
    assert held["other_load"] >= 0
    assert profile["status"] == "ok" and profile["operations"]
    assert got["sustained"]["form"] == "fused" and got["sustained"]["windows"][0]["n"] >= 5
    assert "toy on board: fused " in capsys.readouterr().out
    assert (ssh_device.left(), list(ssh_device.tmp.iterdir())) == ([], [])
