"""The stage that measures, on the real runtimes and a toy network; nothing hangs on how fast they are."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from pipeline.artifacts import digests
from pipeline.artifacts.check_result import CheckResult
from pipeline.config.stages import BenchSettings
from pipeline.config.targets import Bench
from pipeline.errors import InputError, StageError
from pipeline.stages import bench, command
from tests.fixtures.documents import ACCURACY, rebind

QUICK = Bench(threads=[1], warmup_seconds=0, min_runs=10, max_seconds=0.01, launches=(1, 1))
FORM_KEYS = {
    "latency_ms", "warmup", "load_ms", "first_inference_ms", "peak_memory_bytes", "throughput_per_second",
    "transfer_ms", "size_bytes", "sha256",
}  # fmt: skip


@pytest.fixture
def folder(toy_to_time, tmp_path):
    """A copy of both forms of the toy network as ONNX files, with a check.json."""
    return shutil.copytree(toy_to_time("onnx"), tmp_path / "toy")


def change_manifest(folder, change):
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    exported = {path.name: path for path in folder.glob("*.onnx")}
    rebind(CheckResult, folder / "check.json", manifest=folder / "manifest.json", **exported)


def arguments(folder, artifacts):
    return {
        "manifest": folder / "manifest.json",
        "check": folder / "check.json",
        "files": sorted(path for path in folder.iterdir() if path.suffix != ".json"),
        "fused": artifacts.fused,
        "output": folder / "bench.json",
        "profile": folder / "profile.json",
    }


def run_bench(folder, artifacts, backend="onnx", how=QUICK, reference=None):
    bench.run(BenchSettings(backend=backend, bench=how), **arguments(folder, artifacts), reference=reference)
    return json.loads((folder / "bench.json").read_text())


def test_both_forms_are_measured_on_the_targets_own_runtime(folder, artifacts, capsys):
    """In as many launches as where the user says nothing."""
    got = run_bench(folder, artifacts, how=Bench(warmup_seconds=0, min_runs=10, max_seconds=0.01, target_width=10))
    assert (got["status"], got["reason"], got["remedy"], got["reference"]) == ("ok", None, None, None)
    assert (got["target"], got["model"], got["backend"], got["precision"]) == (
        "phone",
        "toy",
        "onnx",
        "fp32",
    )
    assert got["accuracy"] == ACCURACY | {"checked_by": "a runtime", "metric": "top-1"}
    assert got["files"] == {"fused": ["fused.onnx"], "branched": ["branched.onnx"]}
    for form, entry in got["forms"].items():
        file = folder / f"{form}.onnx"
        latency = entry["latency_ms"]
        assert set(entry) == FORM_KEYS
        assert entry["warmup"]["runs"] >= 4 * 5 * 3 and entry["warmup"]["steady"] in (True, False)
        assert entry["transfer_ms"] is None  # there is no device to copy to
        assert latency["n"] >= 10 and 0 < latency["min"] <= latency["p50"] <= latency["p90"] <= latency["p99"]
        assert entry["throughput_per_second"] == pytest.approx(1000 / latency["mean"], rel=1e-3)
        assert entry["load_ms"] > 0 and entry["first_inference_ms"] > 0
        assert (entry["size_bytes"], entry["sha256"]) == (file.stat().st_size, digests.digest(file))
        if sys.platform == "linux":
            assert entry["peak_memory_bytes"] > 0
    assert got["forms"]["fused"]["latency_ms"]["n"] == got["forms"]["branched"]["latency_ms"]["n"]
    assert got["speedup"]["low"] <= got["speedup"]["median"] <= got["speedup"]["high"]
    held = got["conditions"]
    assert (held["threads"], held["batch"], held["min_runs"]) == (1, 1, 10)
    assert held["versions"]["onnxruntime"]
    assert (held["min_launches"], held["max_launches"]) == (3, 5)
    (one,) = got["runs"]
    assert one["threads"] == 1 and one["stopped_by"] in ("width", "limit")
    assert (one["speedup"], one["conditions"]) == (got["speedup"], held)
    for form, entry in one["forms"].items():
        assert got["forms"][form] == entry | {key: got["forms"][form][key] for key in ("size_bytes", "sha256")}
    assert "toy on phone: fused " in capsys.readouterr().out


def test_each_number_of_threads_is_measured_and_the_first_is_the_headline(folder, artifacts, capsys):
    got = run_bench(folder, artifacts, how=QUICK.model_copy(update={"threads": (2, 1)}))
    assert [one["threads"] for one in got["runs"]] == [2, 1]
    assert [one["conditions"]["threads"] for one in got["runs"]] == [2, 1]
    assert {one["forms"]["fused"]["latency_ms"]["launches"] for one in got["runs"]} == {1}
    assert (got["speedup"], got["conditions"]) == (got["runs"][0]["speedup"], got["runs"][0]["conditions"])
    told = capsys.readouterr().out
    assert "toy on phone, 2 threads: fused " in told and "toy on phone, 1 thread: fused " in told


@pytest.mark.skipif(sys.platform != "linux", reason="what others use is read from Linux's /proc")
def test_a_busy_machine_is_told_of(folder, artifacts, capsys):
    """A loop on every core beside the benchmark."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count())]
    try:
        got = run_bench(folder, artifacts)
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    assert got["conditions"]["busy"] and got["conditions"]["other_load"] > 0.5
    assert "cores busy meanwhile, so latencies may be too high" in got["conditions"]["warning"]
    assert f"warning: {got['conditions']['warning']}" in capsys.readouterr().out


def test_a_backend_that_does_not_tell_where_time_goes_is_said_to(folder, artifacts):
    run_bench(folder, artifacts)
    got = json.loads((folder / "profile.json").read_text())
    assert (got["status"], got["model"], got["target"], got["form"]) == ("unavailable", "toy", "phone", "fused")
    assert "onnx backend does not tell where the time" in got["reason"]
    assert "operations" not in got


@pytest.mark.slow
def test_executorch_is_measured_by_executorch(toy_to_time, artifacts, tmp_path, capsys):
    folder = shutil.copytree(toy_to_time("executorch"), tmp_path / "toy")
    twice = QUICK.model_copy(update={"launches": (2, 2)})  # what Python imports counts in the first launch
    got = run_bench(folder, artifacts, "executorch", twice)
    assert (got["status"], got["reference"]) == ("ok", None)
    assert all(entry["latency_ms"]["n"] >= 10 for entry in got["forms"].values())
    assert got["files"] == {"fused": ["fused.pte"], "branched": ["branched.pte"]}
    assert got["conditions"]["versions"]["executorch"]
    if sys.platform == "linux":  # a network of some kilobytes, not the half gigabyte of the runtime's Python side
        assert 0 < got["forms"]["fused"]["peak_memory_bytes"] < 100_000_000
    profile = json.loads((folder / "profile.json").read_text())
    assert (profile["status"], profile["threads"], profile["named"]) == ("ok", 1, True)
    layers = [(one["layer"], one["kind"], one["weight"]) for one in profile["operations"] if one["layer"]]
    assert layers == [
        ("stage1", "convolution", [64, 3, 3, 3]),
        ("stage2", "convolution", [128, 64, 3, 3]),
        ("stage3", "convolution", [128, 128, 3, 3]),
        ("head.linear", "linear", [10, 128]),
    ]
    assert profile["sum_ms"] == pytest.approx(sum(one["ms"] for one in profile["operations"]), abs=1e-5)
    assert sum(one["share"] for one in profile["operations"]) == pytest.approx(1, abs=1e-4)
    assert profile["inference_ms"] == got["forms"]["fused"]["latency_ms"]["p50"]
    assert "stage3  (Convolution" in capsys.readouterr().out


def test_without_a_baseline_there_is_no_speedup(folder, artifacts, capsys):
    change_manifest(folder, lambda manifest: manifest["forms"].pop("branched"))
    got = run_bench(folder, artifacts)
    assert (list(got["forms"]), got["speedup"]) == (["fused"], None)
    assert "times as fast" not in capsys.readouterr().out


def measured_elsewhere(folder, artifacts):
    """A manifest for Core ML, and the bench.json that ONNX Runtime gave of the same network.

    Where the target's runtime is not here its files are never opened, so any will do.
    """
    phone = shutil.copytree(folder, folder.parent / "phone")
    run_bench(folder, artifacts)
    change_manifest(phone, lambda manifest: manifest.update(backend="coreml"))
    return phone, folder / "bench.json"


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML is there on a Mac")
def test_figures_of_a_stand_in_are_never_under_the_targets_name(folder, artifacts, capsys):
    folder, figures = measured_elsewhere(folder, artifacts)
    capsys.readouterr()
    got = run_bench(folder, artifacts, "coreml", reference=figures)
    assert (got["status"], got["backend"], got["speedup"]) == ("unavailable", "coreml", None)
    assert got["reason"] and got["remedy"]
    for form, entry in got["forms"].items():
        file = folder / f"{form}.onnx"
        measured = FORM_KEYS - {"size_bytes", "sha256"}
        assert {key: entry[key] for key in measured} == dict.fromkeys(measured)
        assert (entry["size_bytes"], entry["sha256"]) == (file.stat().st_size, digests.digest(file))
    assert got["runs"] == []
    profile = json.loads((folder / "profile.json").read_text())
    assert (profile["status"], profile["reason"]) == ("unavailable", got["reason"])
    reference, told = got["reference"], json.loads(figures.read_text())
    assert set(reference) == {"runtime", "precision", "forms", "speedup", "runs", "power", "sustained"}
    assert got["conditions"] == reference["runs"][0]["conditions"]
    assert (reference["runtime"], reference["precision"]) == ("ONNX Runtime", "fp32")
    assert list(reference["forms"]) == ["fused", "branched"]
    assert all(set(entry) == FORM_KEYS - {"size_bytes", "sha256"} for entry in reference["forms"].values())
    assert (reference["runs"], reference["speedup"]) == (told["runs"], told["speedup"])
    assert got["conditions"]["versions"]["onnxruntime"]
    printed = capsys.readouterr().out
    assert f"toy on phone: unavailable: {got['reason']}" in printed and got["remedy"] in printed
    assert "reference, ONNX Runtime fp32 here: fused " in printed


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML is there on a Mac")
def test_a_reference_of_other_forms_is_refused(folder, artifacts):
    folder, figures = measured_elsewhere(folder, artifacts)
    change_manifest(folder, lambda manifest: manifest["forms"].pop("branched"))
    message = "the reference is of fused, branched in 1 runs, but this target has fused"
    with pytest.raises(InputError, match=message):
        run_bench(folder, artifacts, "coreml", reference=figures)
    assert not (folder / "bench.json").exists()


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML is there on a Mac")
def test_without_a_reference_there_is_a_reason_alone(folder, artifacts, capsys):
    folder, _ = measured_elsewhere(folder, artifacts)
    got = run_bench(folder, artifacts, "coreml")
    assert (got["status"], got["reference"], got["conditions"]) == ("unavailable", None, None)
    assert f"toy on phone: unavailable: {got['reason']}" in capsys.readouterr().out


def test_a_second_bench_on_this_machine_is_a_hit_and_says_the_same(folder, artifacts, capsys):
    first = run_bench(folder, artifacts)
    told = capsys.readouterr().out.replace("bench: built", "bench: from the store")
    assert run_bench(folder, artifacts) == first
    assert capsys.readouterr().out == told


def test_another_machine_does_not_hit(folder, artifacts, capsys, monkeypatch):
    run_bench(folder, artifacts)
    monkeypatch.setattr("pipeline.devices.facts._cpu", lambda told: "another CPU")
    assert run_bench(folder, artifacts)["conditions"]["cpu"] == "another CPU"
    assert capsys.readouterr().out.count("bench: built") == 2


def test_a_file_that_is_not_what_the_manifest_says_is_refused(folder, artifacts):
    shutil.copyfile(folder / "branched.onnx", folder / "fused.onnx")
    with pytest.raises(InputError, match=r"fused\.onnx is not the file that its manifest describes"):
        run_bench(folder, artifacts)


def test_a_missing_file_is_named(folder, artifacts):
    (folder / "branched.onnx").unlink()
    with pytest.raises(InputError, match=r"the manifest names branched\.onnx, but it was not given"):
        run_bench(folder, artifacts)


def test_a_file_that_the_runtime_refuses_fails_and_leaves_the_last_result(folder, artifacts):
    (folder / "bench.json").write_text("the last result")
    (folder / "fused.onnx").write_bytes((folder / "fused.onnx").read_bytes()[:200])
    now = {"sha256": digests.digest(folder / "fused.onnx"), "size_bytes": 200}
    change_manifest(folder, lambda manifest: manifest["forms"]["fused"]["files"].update({"fused.onnx": now}))
    with pytest.raises((InputError, StageError), match=r"fused\.onnx"):
        run_bench(folder, artifacts)
    assert (folder / "bench.json").read_text() == "the last result"


def test_the_command_line(folder, artifacts):
    words = ["--settings", BenchSettings(backend="onnx", bench=QUICK).model_dump_json()]
    for name, value in arguments(folder, artifacts).items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    assert command.main(bench.run, words) == 0
    assert json.loads((folder / "bench.json").read_text())["status"] == "ok"
