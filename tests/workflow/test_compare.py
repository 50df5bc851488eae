"""`repnets compare` on what was built for real."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.artifacts import documents
from pipeline.artifacts.check_result import CheckResult

PROJECT = Path(__file__).resolve().parents[2]


def compare(*words):
    command = [sys.executable, "-m", "pipeline.cli.main", "compare", *map(str, words)]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def after(built, tmp_path_factory) -> Path:
    """The documents of a second build, in which a file of ExecuTorch has an operation more and lost two points."""
    folder = tmp_path_factory.mktemp("compare") / "after"
    for place in built.folder.glob("[at]*/**/*.json"):
        if place.parts[len(built.folder.parts)] in ("artifacts", "targets"):
            (copied := folder / place.relative_to(built.folder)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(place, copied)
    path = folder / "targets/executorch/toy/check.json"
    checked = documents.read(CheckResult, path)
    form = checked.forms["fused"]
    worse = replace(form, census={**form.census, "total": form.census["total"] + 1})
    lower = replace(checked.accuracy, file=checked.accuracy.file - 0.02)
    documents.write(path, replace(checked, forms={**checked.forms, "fused": worse}, accuracy=lower))
    return folder


@pytest.mark.slow
def test_a_build_is_like_itself(built):
    done = compare(built.folder, built.folder / "report.md")
    assert done.returncode == 0, done.stderr
    told = done.stdout.split()
    assert told[0] == told[2] and int(told[0]) > 10 and done.stdout.endswith("figures are the same.\n")


@pytest.mark.slow
def test_a_regression_is_shown_and_ends_with_1(built, after):
    done = compare(built.folder, after, "--json", "-")
    assert done.returncode == 1
    assert "2 of " in done.stderr and "operations of toy for executorch" in done.stderr
    rows = [line for line in done.stderr.splitlines() if line.startswith("| toy")]
    assert [row.split("|")[3].strip() for row in rows] == ["operations", "top-1"]
    assert all("**regression**" in row for row in rows) and "-2.00 points" in rows[1]
    found = {(row["target"], row["measure"]): row["verdict"] for row in json.loads(done.stdout)["rows"]}
    assert found["executorch", "operations"] == "regression" and found["coreml", "operations"] == "same"


@pytest.mark.slow
def test_limits(built, after, tmp_path):
    (tmp_path / "limits.yaml").write_text("{operations: 20%, metric: 1}")
    done = compare(built.folder, after, "--limits", tmp_path / "limits.yaml", "--limit", "metric=3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("worse") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["docs", "docs"], "docs has no targets/<target>/<model>/manifest.json"),
        (["docs", "docs", "--limit", "latancy=3"], "there is no measure `latancy`; did you mean `latency`?"),
        (["docs", "docs", "--limit", "latency=-3"], "`latency=-3` is no limit. Write latency=5%"),
        (["docs", "docs", "--limits", "README.md"], "README.md, line 6: not valid YAML"),
    ],
)
def test_what_cannot_be_compared_is_refused(words, message):
    done = compare(*words)
    assert done.returncode == 2 and message in done.stderr
