"""`precision: auto` by the real rules: candidates are exported and checked, then they race."""

import json

import pytest

from pipeline.deploy import bundle_file

pytestmark = pytest.mark.slow
PIXEL = """
backend: executorch
precision: auto
candidates: [fp32, int8]
bench: {min_runs: 10, max_seconds: 0.1, warmup_seconds: 0, launches: [1, 1]}
"""


def test_auto_chooses_builds_once_and_is_told_in_the_report(clone):
    (clone.folder / "targets/pixel").mkdir()
    (clone.folder / "targets/pixel/target.yaml").write_text(PIXEL)
    run = clone.snakemake("--cores", "2", "all")
    assert run.code == 0, run.output
    assert {stage: count for stage, count in run.jobs.items() if "pixel" in stage} == {
        "export:pixel": 2, "check:pixel": 2, "race:pixel": 1, "summarize:pixel": 1,
    }  # fmt: skip
    bench = json.loads((clone.folder / "targets/pixel/bench.json").read_text())["models"]["toy"]
    assert bench["status"] == "ok" and bench["chosen_by"] == "latency"
    assert [row["precision"] for row in bench["tried"]] == ["fp32", "int8"]
    chosen = json.loads((clone.folder / "targets/pixel/toy/chosen/manifest.json").read_text())
    assert chosen["precision"] == bench["chosen"]
    assert "What auto chose from" in (clone.folder / "report.md").read_text()

    assert clone.snakemake("targets/pixel/toy/bundle.json").jobs == {"bundle:pixel": 1}
    told = json.loads((clone.folder / "targets/pixel/toy/bundle.json").read_text())
    assert bundle_file.open_bundle(clone.folder / told["bundle"]).manifest.precision == bench["chosen"]

    assert clone.snakemake("--cores", "2", "all").jobs == {}
    for bench in ("targets/pixel/toy/bench.json", "targets/pixel/bench.json"):
        (clone.folder / bench).unlink()
    again = clone.snakemake("targets/pixel/bench.json")
    assert again.code == 0 and set(again.jobs) == {"race:pixel", "summarize:pixel"}
    assert "from the store" in clone.logs()["logs/toy/pixel/race.log"]


def test_where_no_precision_holds_the_run_fails_with_all_reasons(clone):
    """A tolerance that no arithmetic passes."""
    (clone.folder / "targets/pixel").mkdir()
    gate = "check: {tolerance: 1.0e-30}\n"
    (clone.folder / "targets/pixel/target.yaml").write_text(PIXEL.replace("[fp32, int8]", "[fp32, fp16]") + gate)
    run = clone.snakemake("targets/pixel/bench.json")
    assert run.code == 1
    assert "no precision of toy holds its gates on pixel" in run.output
    assert "fp32: " in run.output and "fp16: " in run.output
    assert not (clone.folder / "targets/pixel/toy/chosen").exists()
