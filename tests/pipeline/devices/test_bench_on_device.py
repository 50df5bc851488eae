"""bench on a device behind a real sshd: the same bench.json, by Python there or by a runner."""

import json
import shutil
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

from pipeline import backends, devices
from pipeline.artifacts.check_result import CheckResult
from pipeline.artifacts.manifest import ExportSpec, Preprocessing
from pipeline.config.stages import BenchSettings
from pipeline.config.targets import Bench
from pipeline.errors import DeviceError
from pipeline.stages import bench
from tests.fixtures.documents import rebind

QUICK = Bench(threads=[1], warmup_seconds=0, min_runs=10, max_seconds=0.01, launches=(1, 1))


@pytest.fixture
def run_bench(toy_to_time, artifacts, tmp_path):
    """Runs the stage with these settings on a copy of the exported files; gives bench.json and profile.json."""

    def run(how=QUICK, **settings):
        folder = tmp_path / "toy"
        if not folder.exists():
            shutil.copytree(toy_to_time("executorch"), folder)
        bench.run(
            BenchSettings(backend="executorch", bench=how, **settings),
            manifest=folder / "manifest.json",
            check=folder / "check.json",
            files=sorted(folder.glob("*.pte")),
            fused=artifacts.fused,
            output=folder / "bench.json",
            profile=folder / "profile.json",
        )
        return tuple(json.loads((folder / name).read_text()) for name in ("bench.json", "profile.json"))

    return run


@pytest.fixture(scope="module")
def runner(made_once):
    """The runner, built as a device does it against ExecuTorch's own wheel. Needs g++."""

    def fill(folder):
        wheel = Path(find_spec("executorch").submodule_search_locations[0])
        script = Path(devices.__file__).with_name("build_runner.sh")
        done = subprocess.run(["sh", script, wheel, folder / "runner"], capture_output=True, text=True)
        version = metadata.version("executorch")
        assert (done.returncode, done.stdout) == (0, f"repnets-runner executorch={version}\n"), done

    return str(made_once("runner", fill) / "runner")


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
@pytest.mark.skipif(shutil.which("g++") is None, reason="the runner is built with g++")
def test_a_runner_behind_adb(adb_stand_in, run_bench, runner):
    """By the stand-in for adb, on this machine: the way of the files and requests, nothing of a phone."""
    got, profile = run_bench(device="adb:STANDIN", runner=runner)
    assert (got["status"], profile["status"], list(got["forms"])) == ("ok", "ok", ["fused", "branched"])
    assert list((adb_stand_in / "data" / "local" / "tmp").iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the runner is built with g++")
def test_a_link_that_is_cut_in_a_benchmark(ssh_device, run_bench, runner, tmp_path):
    endless = Bench(threads=[1], min_runs=10**6)
    cut = ssh_device.cut_while(lambda: any(ssh_device.tmp.rglob("images.npy")) and ssh_device.runs("runner"))
    with pytest.raises(DeviceError, match=r"the link to 127\.0\.0\.1 was cut.* What ran there for this ended with it"):
        run_bench(endless, device=ssh_device.url, runner=runner)
    assert cut() >= 2
    assert (ssh_device.left(), list(ssh_device.tmp.iterdir())) == ([], [])
    assert not (tmp_path / "toy" / "bench.json").exists()


@pytest.mark.slow
def test_trtexec_alone_is_enough_for_tensorrt(ssh_device, trtexec_stand_in, toy_to_time, artifacts, tmp_path, capsys):
    """With a stand-in for trtexec: it shows the way of the files, nothing of TensorRT."""
    told, how = trtexec_stand_in(), QUICK.model_copy(update={"sustained_seconds": 1})
    folder = shutil.copytree(toy_to_time("onnx"), tmp_path / "toy")
    manifest = json.loads((folder / "manifest.json").read_text()) | {"backend": "tensorrt"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    spec = ExportSpec("fp32", (1, 3, 32, 32), Preprocessing.from_dict(manifest["preprocessing"]))
    backends.load("tensorrt").write_extras([folder / "build_engine.sh"], spec)
    speaks_of = {"manifest": folder / "manifest.json", "build_engine.sh": folder / "build_engine.sh"}
    rebind(CheckResult, folder / "check.json", **speaks_of)
    bench.run(
        BenchSettings(backend="tensorrt", bench=how, device=ssh_device.url),
        manifest=folder / "manifest.json",
        check=folder / "check.json",
        files=[*sorted(folder.glob("*.onnx")), folder / "build_engine.sh"],
        fused=artifacts.fused,
        output=folder / "bench.json",
        profile=folder / "profile.json",
    )
    got, profile = (json.loads((folder / name).read_text()) for name in ("bench.json", "profile.json"))
    assert (got["status"], got["reference"], got["speedup"]["median"]) == ("ok", None, 1)
    for entry in got["forms"].values():
        assert (entry["latency_ms"]["p50"], entry["load_ms"], entry["peak_memory_bytes"]) == (0.8, None, None)
        assert entry["transfer_ms"] == {"host_to_device": 0.02, "device_to_host": 0.01}
    assert got["conditions"]["versions"] == {"tensorrt": "10.3.0"} and got["conditions"]["other_load"] is None
    assert profile["status"] == "ok" and [one["kind"] for one in profile["operations"]] == ["CaskConvolution"]
    assert got["sustained"]["windows"][0]["p50_ms"] == 0.8
    assert [call["onnx"] for call in told() if "saveEngine" in call] == ["branched.onnx", "fused.onnx"]
    assert (ssh_device.left(), list(ssh_device.tmp.iterdir())) == ([], [])


@pytest.mark.slow
def test_python_on_the_device_runs_the_files(ssh_device, run_bench, capsys):
    got, profile = run_bench(
        QUICK.model_copy(update={"sustained_seconds": 0.5}), device=ssh_device.url, device_python=sys.executable
    )
    assert (got["status"], got["reference"], got["accuracy"]["checked_by"]) == ("ok", None, "a runtime")
    for entry in got["forms"].values():
        assert entry["latency_ms"]["n"] >= 10 and entry["load_ms"] > 0 and entry["peak_memory_bytes"] > 0
        assert entry["transfer_ms"] is None
    held = got["conditions"]
    assert held["versions"]["executorch"] and held["versions"]["python"] and held["cores"] >= 1
    assert held["other_load"] >= 0
    assert profile["status"] == "ok" and profile["operations"]
    assert got["sustained"]["form"] == "fused" and got["sustained"]["windows"][0]["n"] >= 5
    assert "toy on phone: fused " in capsys.readouterr().out
    assert (ssh_device.left(), list(ssh_device.tmp.iterdir())) == ([], [])
