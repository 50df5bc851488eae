"""The choice of a precision: real files of the toy network, timed against each other, and what drops out."""

import shutil

import numpy as np
import pytest

from pipeline import backends
from pipeline.artifacts import digests
from pipeline.artifacts.bench_result import Tried
from pipeline.artifacts.manifest import read_json
from pipeline.artifacts.quantize_result import QuantizeResult
from pipeline.backends.worker import client
from pipeline.benchmark import inputs, interleaved, statistics, timing
from pipeline.config.stages import CheckSettings, RaceSettings
from pipeline.config.targets import Bench, Check
from pipeline.errors import GateError, InputError
from pipeline.stages import check, race
from tests.fixtures.documents import rebind, write_completed

PRECISIONS = {"executorch": ("fp32", "int8"), "coreml": ("fp16", "w8")}
QUICK = Bench(warmup_seconds=0, min_runs=10, max_seconds=0.1, launches=(1, 1))
THOROUGH = Bench(warmup_seconds=0, min_runs=30, max_seconds=1, launches=(2, 2))


@pytest.fixture
def copied(checked_toy, tmp_path):
    """A function: the candidates of a backend in a folder, exported and checked by the stages."""

    def copy(backend):
        for precision in PRECISIONS[backend]:
            form = "quantized" if precision == "int8" else "fused"
            shutil.copytree(checked_toy(backend, precision, form), tmp_path / "toy" / precision)
        return tmp_path / "toy"

    return copy


def run_check(artifacts, folder, backend, **gates):
    manifest = read_json(folder / "manifest.json")
    check.run(
        CheckSettings(backend=backend, check=Check(**gates), may_lose=True),
        manifest=folder / "manifest.json", files=files_in(folder, backend), fused=artifacts.fused,
        verify=artifacts.verify, split=artifacts.split, output=folder / "check.json",
        quantized=artifacts.quantized if manifest["precision"] == "int8" else None,
    )  # fmt: skip
    return read_json(folder / "check.json")


def files_in(folder, backend):
    forms = read_json(folder / "manifest.json")["forms"]
    return [folder / name for name in backends.file_names(backend, tuple(forms))]


def run_race(artifacts, folder, backend, how=QUICK, **paths):
    places = [folder / name for name in PRECISIONS[backend]]
    race.run(
        RaceSettings(target="phone", model="toy", backend=backend, bench=how),
        manifests=[place / "manifest.json" for place in places], checks=[place / "check.json" for place in places],
        files=[file for place in places for file in files_in(place, backend)], fused=artifacts.fused,
        quantized=artifacts.quantized, output=folder / "bench.json", profile=folder / "profile.json",
        chosen=folder / "chosen", **paths,
    )  # fmt: skip
    return read_json(folder / "bench.json")


@pytest.mark.slow
def test_the_fastest_is_chosen_as_timing_by_hand_says(artifacts, copied, capsys):
    folder = copied("executorch")
    found = run_race(artifacts, folder, "executorch", THOROUGH)
    jobs = {name: client.Job("executorch", files_in(folder / name, "executorch")[0]) for name in ("fp32", "int8")}
    taken = timing.time_in_turn(
        jobs, inputs.random_image((1, 3, 32, 32)), 1, until=interleaved.Until(0, 30, 1, 10, 2, 2)
    )
    gained = statistics.speedup(taken.timing.samples_ms["fp32"], taken.timing.samples_ms["int8"])
    by_hand = "int8" if gained["median"] > 1 else "fp32"

    assert (found["chosen"], found["chosen_by"], found["precision"]) == (by_hand, "latency", by_hand)
    assert next(iter(found["forms"])) == by_hand and found["speedup"]["median"] > 1
    assert read_json(folder / "profile.json")["form"] == by_hand
    for row in found["tried"]:
        assert row["p50_ms"] == found["runs"][0]["forms"][row["precision"]]["latency_ms"]["p50"]
        assert row["accuracy"] == read_json(folder / row["precision"] / "check.json")["accuracy"]["file"]
    told = capsys.readouterr().out
    assert f"toy on phone: {by_hand} of 2 candidates, chosen by latency" in told


@pytest.mark.slow
def test_what_was_chosen_lies_together(artifacts, copied):
    folder = copied("executorch")
    best = folder / run_race(artifacts, folder, "executorch")["chosen"]
    names = {path.name for path in [*files_in(best, "executorch"), best / "manifest.json", best / "check.json"]}
    assert {path.name for path in (folder / "chosen").iterdir()} == names
    for name in names:
        assert digests.digest(folder / "chosen" / name) == digests.digest(best / name)


@pytest.mark.slow
def test_a_candidate_that_lost_is_in_the_table_and_is_not_chosen(artifacts, copied):
    """int8 is the fastest of these; by its tolerance it is out."""
    folder = copied("executorch")
    checked = run_check(artifacts, folder / "int8", "executorch", tolerance=1e-30)
    assert checked["status"] == "lost" and "tolerance for int8 is 1e-30" in checked["reason"]
    assert checked["accuracy"]["file"] == checked["forms"]["quantized"]["accuracy"]
    found = run_race(artifacts, folder, "executorch")
    assert found["chosen"] == "fp32" and found["speedup"] is None
    assert list(found["runs"][0]["forms"]) == ["fp32"]
    lost = next(row for row in found["tried"] if row["precision"] == "int8")
    assert (lost["status"], lost["reason"], lost["p50_ms"], lost["pareto"]) == ("lost", checked["reason"], None, False)


@pytest.mark.slow
def test_int8_that_quantize_gave_up_is_not_chosen(artifacts, copied, tmp_path):
    folder, report = copied("executorch"), tmp_path / "quantize.json"
    reason = "the gate of quantize did not hold"
    write_completed(report, QuantizeResult, {"status": "lost", "reason": reason})
    rebind(QuantizeResult, report, fused=artifacts.fused, quantized=artifacts.quantized)
    found = run_race(artifacts, folder, "executorch", report=report)
    assert found["chosen"] == "fp32"
    assert found["tried"][1]["reason"] == "the gate of quantize did not hold"


@pytest.mark.slow
def test_where_none_holds_every_reason_is_told_and_nothing_is_written(artifacts, copied):
    folder = copied("executorch")
    for name in ("fp32", "int8"):
        run_check(artifacts, folder / name, "executorch", tolerance=1e-30)
    with pytest.raises(GateError, match=r"no precision of toy holds its gates on phone.* fp32: .* int8: ") as failed:
        run_race(artifacts, folder, "executorch")
    assert "Add another to `candidates`" in str(failed.value)
    assert not (folder / "bench.json").exists() and not (folder / "chosen").exists()


@pytest.mark.slow
def test_a_file_that_holds_another_network_stops_the_build(artifacts, copied):
    """That is no property of a precision."""
    folder = copied("executorch")
    (folder / "fp32" / "fused.pte").write_bytes((folder / "int8" / "quantized.pte").read_bytes())
    with pytest.raises(GateError, match="is not the file that its manifest describes"):
        run_check(artifacts, folder / "fp32", "executorch")
    with pytest.raises(InputError, match="is not the file that"):
        run_race(artifacts, folder, "executorch")


@pytest.mark.slow
def test_where_the_runtime_is_not_here_the_smallest_is_chosen(artifacts, copied, capsys):
    if backends.load("coreml").unavailable() is None:
        pytest.skip("Core ML is here, so nothing is chosen by size")
    folder = copied("coreml")
    found = run_race(artifacts, folder, "coreml")
    assert (found["status"], found["chosen"], found["chosen_by"]) == ("unavailable", "w8", "size")
    sizes = {row["precision"]: row["size_bytes"] for row in found["tried"]}
    assert min(sizes, key=sizes.get) == "w8"
    assert (found["runs"], found["speedup"], found["conditions"], found["reference"]) == ([], None, None, None)
    assert read_json(folder / "profile.json")["status"] == "unavailable"
    told = capsys.readouterr().out
    assert "chosen by size" in told and "nothing was timed: Core ML runs on Apple's systems alone" in told


def launches(milliseconds, seed):
    """Three launches of 20 rounds of five runs, about so many ms."""
    random = np.random.default_rng(seed)
    return [milliseconds * random.lognormal(0, 0.02, (20, 5)) for _ in range(3)]


def test_of_two_that_cannot_be_told_apart_the_smaller_is_taken():
    samples = {"fp32": launches(1.0, 0), "int8": launches(1.0, 1), "fp16": launches(2.0, 2)}
    assert race.fastest({"fp32": 400, "int8": 100, "fp16": 50}, samples) == "int8"
    assert race.fastest({"fp32": 100, "int8": 400, "fp16": 50}, samples) == "fp32"
    samples["int8"] = launches(1.2, 1)
    assert race.fastest({"fp32": 400, "int8": 100, "fp16": 50}, samples) == "fp32"


def test_the_front_has_what_no_other_beats():
    def row(precision, accuracy, p50_ms, size_bytes):
        return Tried(precision, "ok", None, accuracy, p50_ms, size_bytes)

    rows = [
        row("fp32", 0.9, 2.0, 400),
        row("fp16", 0.9, 3.0, 200),
        row("int8", 0.8, 1.0, 100),
        row("w8", 0.8, 1.5, 100),
    ]
    assert race.on_front(rows) == ["fp32", "fp16", "int8"]
    assert race.on_front([row("fp16", 0.9, None, 200), row("w8", 0.9, None, 100)]) == ["w8"]
    assert race.on_front([row("fp16", 0.9, None, 200), row("w8", 0.9, None, 200)]) == ["fp16", "w8"]
