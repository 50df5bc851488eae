"""The report: what a person reads at the end."""

import json

import pytest

from pipeline.artifacts import documents as kinds
from pipeline.artifacts.bench_result import BenchResult, TargetBench
from pipeline.artifacts.failures import FailedJob, Failures
from pipeline.artifacts.fuse_result import FuseResult
from pipeline.artifacts.profile_result import ProfileResult
from pipeline.config.stages import NoSettings
from pipeline.stages import command, report
from tests.fixtures.documents import write_completed

FUSED = {"fused": "11"}

WARNING = "others kept 1.1 cores busy meanwhile, so latencies may be too high; bench again on a quiet machine"
REASON, REMEDY = "Core ML runs on macOS alone, and this is Linux.", "Run the same command on a Mac."
CONDITIONS = {
    "cpu": "Some CPU", "device": "Some board", "cores": 4, "gpus": [], "os": "Linux 6.1 aarch64",
    "threads": 2, "batch": 1, "busy": False, "warning": None,
    "versions": {"python": "3.11.7", "executorch": "1.5.1", "tensorrt": None},
}  # fmt: skip

ONE_THREAD = CONDITIONS | {"threads": 1}


def figures(branched, fused, conditions=CONDITIONS):
    """The figures of a bench.json that was measured on one number of threads, or not at all."""
    runs = [run(branched, fused, conditions)] if fused else []
    forms = {form: {"size_bytes": 1_230_000} for form in (runs[0]["forms"] if runs else ("fused", "branched"))}
    return {"forms": forms, "speedup": runs[0]["speedup"] if runs else None, "runs": runs}


def run(branched, fused, conditions=CONDITIONS):
    times = {"fused": fused, "branched": branched}
    return {
        "threads": conditions["threads"],
        "forms": {form: {"latency_ms": {"p50": time}} for form, time in times.items() if time},
        "speedup": {"median": branched / fused, "low": 4.2, "high": 4.55} if branched else None,
        "conditions": conditions,
    }


def measured(model="toy", **changes):
    return {
        "target": "phone", "model": model, "status": "ok", "reason": None, "remedy": None, "reference": None,
        "accuracy": {"branched": 0.98, "fused": 0.98, "file": 0.9755, "checked_by": "ExecuTorch"},
        **figures(14.4, 3.29), **changes,
    }  # fmt: skip


def unavailable(model="toy", **changes):
    accuracy = {"branched": 0.98, "fused": 0.98, "file": None, "checked_by": None}
    reference = {"runtime": "ONNX Runtime", "precision": "fp32", **figures(2.0, 1.0)}
    return measured(
        model, target="tablet", status="unavailable", reason=REASON, remedy=REMEDY, accuracy=accuracy,
        reference=reference, **(figures(None, None) | changes),
    )  # fmt: skip


def profile(model="toy", count=2):
    operations = [
        {"layer": f"stage{place}", "name": f"Convolution #{place}", "ms": float(place), "share": place / 10}
        for place in range(1, count + 1)
    ]
    operations.append({"layer": None, "name": "Transpose", "ms": 1.5, "share": 0.15})
    return {"status": "ok", "target": "phone", "model": model, "operations": operations}


def forecast(*risks, reason=None):
    """A forecast of two layers in fuse.json; of the risks, the sentences."""
    layers = [
        {"name": name, "weight": {"snr_db": 41.26}, "input": {"snr_db": digits}, "logit_error": {"both": error}}
        for name, digits, error in (("stage1", 39.0, 0.0004), ("stage2", None, 0.0025))
    ]
    known = {"images": 128, "reason": None, "logit_error": 0.0029, "layers": layers}
    unknown = {"images": 0, "reason": reason, "logit_error": None, "layers": []}
    return {**(unknown if reason else known), "risks": [{"message": risk} for risk in risks]}


@pytest.fixture
def written(tmp_path):
    """The report over these documents and profiles, as text."""

    def write(*documents, profiles=(), forecasts=None, failed=None):
        benches, told = [], []
        for target in dict.fromkeys(document["target"] for document in documents):
            models = {one["model"]: one for one in documents if one["target"] == target}
            benches.append(tmp_path / f"{target}.json")
            models = {name: {"subjects": FUSED, **one} for name, one in models.items()}
            summary = {"target": target, "models": models, "subjects": dict.fromkeys(models, "00")}
            write_completed(benches[-1], TargetBench, summary)
        for number, one in enumerate([*profiles, {"status": "unavailable", "target": "tablet", "model": "toy"}]):
            told.append(tmp_path / f"profile{number}.json")
            write_completed(told[-1], ProfileResult, {"subjects": {"bench": "00"}, **one})
        fuses = []
        for model, one in (forecasts or {"toy": forecast()}).items():
            fuses.append(tmp_path / model / "fuse.json")
            fuses[-1].parent.mkdir(exist_ok=True)
            write_completed(fuses[-1], FuseResult, {"forecast": one, "subjects": FUSED})
        output = tmp_path / "report.md"
        failures = tmp_path / "failed.json" if failed else None
        if failed:
            kinds.write(failures, failed)
        report.run(
            NoSettings(), benches=benches, profiles=told, fuses=fuses, failures=failures, output=output
        )  # fmt: skip
        assert [path.name for path in tmp_path.glob(".*")] == []
        return output.read_text()

    return write


def test_the_whole_page(written):
    assert (
        written(unavailable(), measured(), profiles=[profile()])
        == """\
# What the fold gained

`branched` is the network as it was trained, `fused` the same network with its branches folded into single
convolutions, `file` what a device runs: the fused network, exported, or for int8 the quantized one. % is
top-1 accuracy on the validation images, ms the median latency. `speed-up` is how many times as fast `file` is
as `branched` on the same runtime, with its 95% interval; a note below says where it is over `fused` instead.

| model | target | status      | threads | file MB | branched % | fused % | file % | file ms |          speed-up |
| ----- | ------ | ----------- | ------: | ------: | ---------: | ------: | -----: | ------: | ----------------: |
| toy   | phone  | ok          |       2 |    1.23 |      98.00 |   98.00 |  97.55 |   3.290 | 4.38x (4.20-4.55) |
| toy   | tablet | unavailable |       - |    1.23 |      98.00 |   98.00 |      - |       - |                 - |

- tablet: unavailable. Core ML runs on macOS alone, and this is Linux. To get figures: Run the same command on
  a Mac.
- phone: file % was measured with ExecuTorch.
- tablet: file % is unknown: nothing here runs the file.

## Reference: ONNX Runtime, fp32

These are NOT figures of the target. Its runtime is not on this machine, so the same network was timed in fp32
with ONNX Runtime on this machine's CPU. They show what is gained on a CPU; a device can differ.

| model | stands in for | threads | branched ms | fused ms |          speed-up |
| ----- | ------------- | ------: | ----------: | -------: | ----------------: |
| toy   | tablet        |       2 |       2.000 |    1.000 | 2.00x (4.20-4.55) |

## Where the time goes

The slowest operations of `file`, at most 10 for each model and target, and their share of the time of all
operations. Profiling slows a runtime down, and the time between operations is counted in none of them, so
their sum is not the latency of an inference.

| model | target | layer  | operation      |    ms | share % |
| ----- | ------ | ------ | -------------- | ----: | ------: |
| toy   | phone  | stage2 | Convolution #2 | 2.000 |   20.00 |
| toy   | phone  | -      | Transpose      | 1.500 |   15.00 |
| toy   | phone  | stage1 | Convolution #1 | 1.000 |   10.00 |

## What int8 will do

A forecast from training images, made before anything is quantized. `all` is the error that int8 adds to the
logits when every layer is quantized, as a percentage of their standard deviation; `worst` is the error from
the worst layer alone, and the two columns in dB are the precision of its weight and of its input in int8. A
layer that adds more than 22 % will lose accuracy. See docs/int8-forecast.md.

| model | all % | worst layer | worst % | weight dB | input dB |
| ----- | ----: | ----------- | ------: | --------: | -------: |
| toy   |   5.4 | stage2      |     5.0 |        41 |        - |

- toy: no layer will lose accuracy.

## Conditions

- toy on phone; toy on reference for tablet: Some CPU (Some board), threads 2 of 4 cores, batch 1, Linux 6.1
  aarch64, python 3.11.7, executorch 1.5.1.
"""
    )


def test_columns_stay_aligned_and_within_a_terminal(written):
    documents = [
        measured("mobileone_s0", **figures(14.4, 3.29, ONE_THREAD)),
        measured("toy", **figures(1234.5678, 1000.0, ONE_THREAD)),
        unavailable("mobileone_s0"),
    ]
    lines = written(*documents).splitlines()
    assert max(map(len, lines)) <= 120
    for table in ("| model        | target", "| model        | stands in for"):
        start = next(number for number, line in enumerate(lines) if line.startswith(table))
        rows = lines[start : start + 3]
        assert len({tuple(place for place, char in enumerate(row) if char == "|") for row in rows}) == 1


def test_a_target_without_a_baseline_has_no_speedup(written):
    row = next(line for line in written(measured(**figures(None, 3.29))).splitlines() if line.startswith("| toy"))
    assert [cell.strip() for cell in row.strip("|").split("|")][-2:] == ["3.290", "-"]


def test_a_network_that_came_folded_has_no_branched_figures(written):
    accuracy = {"branched": None, "fused": 0.98, "file": 0.97, "checked_by": "ExecuTorch"}
    text = written(measured("mine", accuracy=accuracy, **figures(None, 3.29)), measured())
    row = next(line for line in text.splitlines() if line.startswith("| mine"))
    assert [cell.strip() for cell in row.strip("|").split("|")][5:] == ["-", "98.00", "97.00", "3.290", "-"]
    assert "- mine: came folded, so there is no branched network to compare with." in text


def test_a_check_on_some_of_the_images_says_so(written):
    sample = {"images": 50, "of": 1359, "fused": 0.98}
    page = written(measured(accuracy=measured()["accuracy"] | {"sample": sample}))
    text = " ".join(page.split())
    assert "toy on phone: checked on 50 of 1,359 validation images (`check.images`), on which fused has 98.00%." in text
    assert "check.images" not in written(measured())


def test_an_int8_file_stands_beside_the_fused_network(written):
    def int8(document):
        """The same, with what was fused as quantized, and branched as fused."""
        text = json.dumps(document).replace('"fused":', '"quantized":').replace('"branched":', '"fused":')
        return json.loads(text) | {"accuracy": document["accuracy"], "target": f"{document['target']}-int8"}

    stand_in = int8(unavailable())
    stand_in["reference"]["precision"] = "int8"
    text = written(int8(measured()), stand_in, measured(), unavailable())
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:5] == "| toy"]
    assert [(row[1], row[-2]) for row in rows[:4]] == [
        ("phone", "3.290"), ("phone-int8", "3.290"), ("tablet", "-"), ("tablet-int8", "-"),
    ]  # fmt: skip
    assert "- phone-int8, tablet-int8: speed-up is over `fused`." in text
    section = text[text.index("## Reference: ONNX Runtime, int8") :]
    assert "so the same network was timed in" in section
    assert "| fused ms | quantized ms |" in section


def test_figures_of_a_busy_machine_are_marked(written):
    text = written(measured(**figures(2, 1, CONDITIONS | {"busy": True, "warning": WARNING})))
    assert "| ok, busy |" in text
    assert f"- warning, toy on phone: {WARNING}." in text.replace("\n  ", " ")


def test_each_number_of_threads_has_a_row_with_its_own_conditions(written):
    busy = CONDITIONS | {"threads": 4, "busy": True, "warning": WARNING}
    text = written(measured(runs=[run(14.4, 3.29), run(10.0, 2.0, busy)]))
    rows = [
        [cell.strip() for cell in row.strip("|").split("|")]
        for row in text.splitlines()
        if row.startswith("| toy   | ph")
    ]
    assert [row[2:4] + row[-2:] for row in rows] == [
        ["ok", "2", "3.290", "4.38x (4.20-4.55)"],
        ["ok, busy", "4", "2.000", "5.00x (4.20-4.55)"],
    ]
    assert "threads 2 of 4 cores" in text and "threads 4 of 4 cores" in text


def test_one_thread_throughout_needs_no_column(written):
    text = written(measured(**figures(2, 1, ONE_THREAD)))
    assert "| threads |" not in text


def test_a_speedup_without_an_interval_is_shown_without(written):
    once = run(4.0, 2.0)
    once["speedup"] |= {"low": None, "high": None}
    assert "| 2.00x |" in written(measured(runs=[once])).replace("   ", "").replace("  ", " ")


def test_of_many_operations_the_ten_slowest_stand_there(written):
    text = written(measured(), profiles=[profile(count=30)])
    told = [line for line in text.splitlines() if "Convolution #" in line]
    assert [f"#{place} " in line for place, line in zip(range(30, 20, -1), told, strict=True)] == [True] * 10


def test_without_a_profile_there_is_no_table_of_it(written):
    assert "Where the time goes" not in written(measured())


def test_layers_that_will_hurt_in_int8_are_told_with_the_reason(written):
    sick = "Layer 'stage1.1' makes a channel that is far wider than the others, and this sentence has a second line."
    text = written(
        measured(),
        forecasts={
            "b": forecast(sick, "And another."),
            "a": forecast(),
            "c": forecast(),
            "d": forecast(reason="no logits"),
        },
    )
    section = text[text.index("## What int8 will do") : text.index("## Conditions")].replace("\n  ", " ")
    assert [line for line in section.splitlines() if line.startswith("- ")] == [
        f"- b: {sick}", "- b: And another.", "- d: not known, no logits.", "- a, c: no layer will lose accuracy.",
    ]  # fmt: skip
    assert [line.split()[1] for line in section.splitlines() if line.startswith("| ")][1:] == ["-----", "a", "b", "c"]


def test_a_reason_is_given_once_for_all_models_of_a_target(written):
    text = written(unavailable("toy"), unavailable("toy2"), measured()).replace("\n  ", " ")
    assert text.count(REASON) == 1
    assert f"- tablet: unavailable. {REASON} To get figures: {REMEDY}" in text


def test_the_command_line(written, tmp_path):
    page = written(measured())
    words = [
        "--settings",
        "{}",
        "--benches",
        str(tmp_path / "phone.json"),
        "--profiles",
        str(tmp_path / "profile0.json"),
        "--fuses",
        str(tmp_path / "toy" / "fuse.json"),
        "--output",
        str(tmp_path / "again.md"),
    ]
    assert command.main(report.run, words) == 0
    assert (tmp_path / "again.md").read_text() == page


def test_of_one_model_alone_without_profiles_and_forecasts(tmp_path):
    """As the rule `preview` asks for it: the bench.json of each target, and nothing else."""
    write_completed(tmp_path / "bench.json", BenchResult, measured("toy"))
    command_line = ["--settings", "{}", "--benches", str(tmp_path / "bench.json")]
    assert command.main(report.run, [*command_line, "--output", str(tmp_path / "report.md")]) == 0
    page = (tmp_path / "report.md").read_text()
    assert page.startswith("# What the fold gained") and "| toy " in page
    assert "Where the time goes" not in page and "int8" not in page.partition("\n## ")[2]


def raced(chosen="int8", **changes):
    tried = [
        {"precision": "fp32", "status": "ok", "reason": None, "accuracy": 0.98, "p50_ms": 0.9, "size_bytes": 900_000,
         "pareto": True},
        {"precision": "int8", "status": "ok", "reason": None, "accuracy": 0.97, "p50_ms": 0.3, "size_bytes": 240_000,
         "pareto": True},
        {"precision": "w4", "status": "lost", "reason": "top-1 is 50.00%.", "accuracy": 0.5, "p50_ms": None,
         "size_bytes": 140_000, "pareto": False},
    ]  # fmt: skip
    document = measured(target="pixel", chosen=chosen, chosen_by="latency", tried=tried, **figures(14.4, 3.29))
    document["forms"] = {"int8": {"size_bytes": 240_000}, "fp32": {"size_bytes": 900_000}}
    document["runs"][0]["forms"] = {
        form: {"latency_ms": {"p50": time}} for form, time in (("int8", 0.3), ("fp32", 0.9))
    }
    return document | changes


def test_what_auto_chose_from_is_a_table_of_its_own(written):
    text = written(measured(), raced())
    table = text.partition("## What auto chose from")[2].partition("##")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| toy")]
    assert rows == [
        ["toy", "pixel", "fp32", "ok", "98.00", "0.900", "0.90", "yes"],
        ["toy", "pixel", "int8", "chosen by latency", "97.00", "0.300", "0.24", "yes"],
        ["toy", "pixel", "w4", "lost", "50.00", "-", "0.14", "-"],
    ]
    assert "- toy on pixel, w4: top-1 is 50.00%." in table
    assert "- pixel: speed-up is over `fp32`." in text


def test_auto_without_its_runtime_has_no_figure_and_no_reference(written):
    changes = {"status": "unavailable", "reason": REASON, "remedy": REMEDY, "runs": [], "speedup": None}
    text = written(measured(), raced(chosen_by="size", **changes))
    assert "chosen by size" in text and "speed-up is over" not in text
    assert f"- pixel: unavailable. {REASON} To get figures: {REMEDY}" in text.replace("\n  ", " ")


def test_a_report_without_auto_says_nothing_of_it(written):
    assert "auto" not in written(measured())


GATE = "off by 6.5e-04; tolerance is 1e-30."
FAILED = Failures(
    (FailedJob("checking the tablet files of toy", "check", "toy", "tablet", GATE, "logs/toy/tablet/check.log"),),
    ("report.md", "targets/tablet/bench.json", "targets/tablet/toy/bench.json", "targets/tablet/toy/check.json"),
)


def test_what_failed_has_a_row_and_its_reason_and_no_figure(written):
    page = written(measured(), failed=FAILED)
    assert "**Not everything was built: toy for tablet.**" in page
    assert f"checking the tablet files of toy: {GATE} Its log: logs/toy/tablet/check.log" in " ".join(page.split())
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| toy")]
    assert rows[0][:3] == ["toy", "phone", "ok"]
    assert rows[1] == ["toy", "tablet", "failed", *["-"] * 7]


def test_where_nothing_was_built_the_failures_are_the_report(tmp_path):
    kinds.write(tmp_path / "failed.json", FAILED)
    report.run(NoSettings(), failures=tmp_path / "failed.json", output=tmp_path / "report.md")
    page = (tmp_path / "report.md").read_text()
    assert "| toy   | tablet | failed |" in page and "## Conditions" not in page
