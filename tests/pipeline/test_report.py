"""The report: what a person reads at the end."""

import json

import pytest

from pipeline import report
from pipeline.config import NoSettings

WARNING = "others kept 1.1 cores busy meanwhile, so latencies may be too high; bench again on a quiet machine"
REASON, REMEDY = "Core ML runs on macOS alone, and this is Linux.", "Run the same command on a Mac."
CONDITIONS = {
    "cpu": "Some CPU", "device": "Some board", "cores": 4, "gpus": [], "os": "Linux 6.1 aarch64",
    "threads": 2, "batch": 1, "busy": False, "warning": None,
    "versions": {"python": "3.11.7", "executorch": "1.5.1", "tensorrt": None},
}  # fmt: skip


def figures(branched, fused):
    times = {"branched": branched, "fused": fused}
    forms = {
        form: {"latency_ms": {"p50": time} if time else None, "size_bytes": 1_230_000}
        for form, time in times.items()
        if time or form == "fused"
    }
    speedup = {"median": branched / fused, "low": 4.2, "high": 4.55} if branched and fused else None
    return {"forms": forms, "speedup": speedup}


def measured(model="toy", **changes):
    return {
        "target": "phone", "model": model, "status": "ok", "reason": None, "remedy": None, "reference": None,
        "accuracy": {"branched": 0.98, "fused": 0.98, "file": 0.9755, "checked_by": "ExecuTorch"},
        "conditions": CONDITIONS, **figures(14.4, 3.29), **changes,
    }  # fmt: skip


def unavailable(model="toy", **changes):
    accuracy = {"branched": 0.98, "fused": 0.98, "file": None, "checked_by": None}
    reference = {"runtime": "ONNX Runtime", "precision": "fp32", **figures(2.0, 1.0)}
    return measured(
        model, target="tablet", status="unavailable", reason=REASON, remedy=REMEDY, accuracy=accuracy,
        reference=reference, **(figures(None, None) | changes),
    )  # fmt: skip


@pytest.fixture
def written(tmp_path):
    """The report over these documents, as text."""

    def write(*documents):
        paths = []
        for target in dict.fromkeys(document["target"] for document in documents):
            models = {one["model"]: one for one in documents if one["target"] == target}
            paths.append(tmp_path / f"{target}.json")
            paths[-1].write_text(json.dumps({"target": target, "status": "ok", "models": models}))
        output = tmp_path / "report.md"
        report.run(NoSettings(), benches=paths, output=output)
        assert [path.name for path in tmp_path.glob(".*")] == []
        return output.read_text()

    return write


def test_the_whole_page(written):
    assert (
        written(unavailable(), measured())
        == """\
# What the fold gained

`branched` is the network as it was trained, `fused` the same network with its branches folded into single
convolutions, `file` the exported fused network that a device runs. % is top-1 accuracy on the validation
images, ms the median of one inference. `speed-up` is how many times as fast `fused` is as `branched`, both
exported alike, with its 95% interval.

| model | target | status      | file MB | branched % | fused % | file % | fused ms |          speed-up |
| ----- | ------ | ----------- | ------: | ---------: | ------: | -----: | -------: | ----------------: |
| toy   | phone  | ok          |    1.23 |      98.00 |   98.00 |  97.55 |    3.290 | 4.38x (4.20-4.55) |
| toy   | tablet | unavailable |    1.23 |      98.00 |   98.00 |      - |        - |                 - |

- tablet: unavailable. Core ML runs on macOS alone, and this is Linux. To get figures: Run the same command on
  a Mac.
- phone: file % was taken with ExecuTorch.
- tablet: file % is unknown, nothing here runs the file.

## Reference: ONNX Runtime, fp32

NOT the target's figures. Its runtime is not on this machine, so the same network, in fp32, was timed with
ONNX Runtime on this machine's CPU. They show what the fold gains on a CPU; a device can differ.

| model | stands in for | branched ms | fused ms |          speed-up |
| ----- | ------------- | ----------: | -------: | ----------------: |
| toy   | tablet        |       2.000 |    1.000 | 2.00x (4.20-4.55) |

## Conditions

- toy on phone; toy on reference for tablet: Some CPU (Some board), threads 2 of 4 cores, batch 1, Linux 6.1
  aarch64, python 3.11.7, executorch 1.5.1.
"""
    )


def test_columns_stay_aligned_and_within_a_terminal(written):
    documents = [
        measured("mobileone_s0"),
        measured("toy", **figures(1234.5678, 1000.0)),
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
    assert [cell.strip() for cell in row.strip("|").split("|")][4:] == ["-", "98.00", "97.00", "3.290", "-"]
    assert "- mine: came folded, so there is no branched network to compare with." in text


def test_figures_of_a_busy_machine_are_marked(written):
    text = written(measured(conditions=CONDITIONS | {"busy": True, "warning": WARNING}))
    assert "| ok, busy |" in text
    assert f"- busy, toy on phone: {WARNING}." in text.replace("\n  ", " ")


def test_a_reason_is_given_once_for_all_models_of_a_target(written):
    text = written(unavailable("toy"), unavailable("toy2"), measured()).replace("\n  ", " ")
    assert text.count(REASON) == 1
    assert f"- tablet: unavailable. {REASON} To get figures: {REMEDY}" in text


def test_the_command_line(written, tmp_path):
    page = written(measured())
    command = [
        "--settings",
        "{}",
        "--benches",
        str(tmp_path / "phone.json"),
        "--output",
        str(tmp_path / "again.md"),
    ]
    assert report.main(command) == 0
    assert (tmp_path / "again.md").read_text() == page
