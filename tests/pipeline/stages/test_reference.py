"""What stands in for a runtime that is not here, measured by the real stand-ins on a toy network."""

import json
from dataclasses import replace

import pytest

from pipeline import backends
from pipeline.artifacts import documents
from pipeline.artifacts.bench_result import ReferenceResult
from pipeline.benchmark import stand_ins
from pipeline.config.stages import ReferenceSettings
from pipeline.config.targets import Bench
from pipeline.models import resolve
from pipeline.stages import jobs, reference
from pipeline.stages.settings import settings_of

QUICK = Bench(threads=[1], warmup_seconds=0, min_runs=10, max_seconds=0.01, target_width=10)
CPU = "{backend: executorch, precision: int8}"
GPU = "{backend: tensorrt, precision: fp16}"


def run_reference(artifacts, output, forms=("fused", "branched"), batch=1, image_size=None, quantized=None):
    settings = ReferenceSettings(
        precision="int8" if quantized else "fp32", forms=forms, batch=batch, image_size=image_size, bench=QUICK
    )
    reference.run(settings, checkpoint=artifacts.checkpoint, fused=artifacts.fused, output=output, quantized=quantized)
    return json.loads(output.read_text())


def test_both_forms_are_measured_by_onnx_runtime(artifacts, tmp_path, capsys):
    got = run_reference(artifacts, tmp_path / "reference.json", batch=2, image_size=48)
    assert (got["backend"], got["precision"], list(got["forms"])) == ("onnx", "fp32", ["fused", "branched"])
    (run,) = got["runs"]
    assert run["conditions"]["batch"] == 2 and run["conditions"]["versions"]["onnxruntime"]
    assert got["forms"] == run["forms"]
    assert all(entry["latency_ms"]["n"] >= 10 for entry in got["forms"].values())
    assert got["speedup"]["n"] >= 2
    assert "ONNX Runtime fp32 here: fused " in capsys.readouterr().out


def test_a_second_time_it_comes_from_the_store(artifacts, tmp_path, capsys):
    first = run_reference(artifacts, tmp_path / "one.json", forms=("fused",))
    assert run_reference(artifacts, tmp_path / "two.json", forms=("fused",)) == first
    assert capsys.readouterr().out.count("reference: built") == 1


def test_the_size_of_a_file_is_no_figure_of_a_stand_in(artifacts, tmp_path):
    run_reference(artifacts, tmp_path / "reference.json")
    got = documents.read(ReferenceResult, tmp_path / "reference.json")
    theirs = replace(got, forms={name: replace(one, size_bytes=1, sha256="a") for name, one in got.forms.items()})
    assert stand_ins.reference(theirs, ["fused", "branched"]) == stand_ins.reference(got, ["fused", "branched"])


@pytest.fixture
def configured(tmp_path, monkeypatch):
    """A configuration with targets of these texts, on a machine without a GPU and Core ML."""
    monkeypatch.setattr("pipeline.backends.tensorrt.runtime.compute_capability", lambda: None)

    def configure(models="toy", **targets):
        for name, text in targets.items():
            (tmp_path / "targets" / name).mkdir(parents=True)
            (tmp_path / "targets" / name / "target.yaml").write_text(text)
        return resolve.load({"models": dict.fromkeys(models.split())}, backends.rules(), tmp_path)

    return configure


class Wildcards:
    model = "toy"


def test_targets_that_are_alike_share_one_measurement(configured):
    read = configured("toy repvgg_a0", gpu=GPU, sized="{backend: tensorrt, precision: fp32, image_size: 32}")
    found = jobs.references(read)
    assert {model: len(names) for model, names in found.items()} == {"toy": 1, "repvgg_a0": 1}
    (name,) = found["toy"]
    assert name.startswith("reference-fp32-")
    for target in ("gpu", "sized"):
        assert jobs.reference(read, target)(Wildcards) == [f"artifacts/toy/{name}.json"]


@pytest.mark.parametrize("change", ["batch: 2", "image_size: 64", "bench: {min_runs: 60}", "baseline: none"])
def test_targets_that_differ_are_measured_each(configured, change):
    read = configured(gpu=GPU, other=GPU.replace("}", f", {change}}}"))
    assert len(jobs.references(read)["toy"]) == 2
    assert jobs.reference(read, "gpu")(Wildcards) != jobs.reference(read, "other")(Wildcards)


def test_a_target_that_is_the_same_measurement_serves(configured):
    read = configured(gpu="{backend: tensorrt, precision: int8}", board=CPU)
    assert jobs.references(read) == {}
    assert jobs.reference(read, "gpu")(Wildcards) == ["targets/board/toy/bench.json"]


def test_a_target_on_a_device_or_of_another_batch_does_not(configured):
    read = configured(
        gpu="{backend: tensorrt, precision: int8}",
        board=CPU.replace("}", ", device: ssh://pi@board}"),
        batches=CPU.replace("}", ", batch: 8}"),
    )
    (name,) = jobs.references(read)["toy"]
    assert name.startswith("reference-int8-")
    assert settings_of("reference", read, "toy", "gpu").forms == ("quantized", "fused")


def test_where_the_runtime_is_here_or_the_precision_is_raced_there_is_none(configured):
    read = configured(board=CPU, race="{backend: tensorrt, precision: auto}")
    assert jobs.references(read) == {}
    assert jobs.reference(read, "board")(Wildcards) == jobs.reference(read, "race")(Wildcards) == []
    assert (jobs.is_measured_here(read, "board"), jobs.is_measured_here(read, "race")) == (True, False)
