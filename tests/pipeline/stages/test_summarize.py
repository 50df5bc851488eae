"""The stage that gathers the models of one target."""

import json

import pytest

from pipeline.artifacts import digests
from pipeline.artifacts.bench_result import BenchResult
from pipeline.config.stages import NoSettings
from pipeline.errors import InputError
from pipeline.stages import command, summarize
from tests.fixtures.documents import write_completed


@pytest.fixture
def benches(tmp_path):
    """Writes one bench.json for each (target, model, status); returns their paths."""

    def write(*measured):
        paths = []
        for number, (target, model, status) in enumerate(measured):
            paths.append(tmp_path / f"{number}.json")
            document = {"target": target, "model": model, "status": status, "speedup": {"median": 2.5}}
            write_completed(paths[-1], BenchResult, document)
        return paths

    return write


@pytest.mark.parametrize(
    ("statuses", "worst"),
    [(("ok", "ok"), "ok"), (("unavailable", "ok"), "unavailable"), (("failed", "unavailable"), "failed")],
)
def test_holds_each_model_whole_under_the_worst_status(benches, tmp_path, statuses, worst):
    paths = benches(*(("phone", f"net{number}", status) for number, status in enumerate(statuses)))
    output = tmp_path / "bench.json"
    assert (
        command.main(summarize.run, ["--settings", "{}", "--output", str(output), "--benches", *map(str, paths)]) == 0
    )
    got = json.loads(output.read_text())
    assert (got["target"], got["status"]) == ("phone", worst)
    for number, path in enumerate(paths):
        written = json.loads(path.read_text())
        assert got["models"][f"net{number}"] == {key: written[key] for key in written if key != "digest"}
        assert got["subjects"][f"net{number}"] == digests.digest(path)
    assert len(got["models"]) == len(paths)


def test_files_of_two_targets_are_an_error_and_leave_what_was_there(benches, tmp_path):
    output = tmp_path / "bench.json"
    output.write_text("before")
    with pytest.raises(InputError, match="files of the targets board, phone, but each target has"):
        summarize.run(NoSettings(), benches=benches(("phone", "a", "ok"), ("board", "a", "ok")), output=output)
    assert output.read_text() == "before"
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_the_same_model_twice_is_an_error(benches, tmp_path):
    paths = benches(("phone", "a", "ok"), ("phone", "a", "ok"))
    with pytest.raises(InputError, match="names a model twice"):
        summarize.run(NoSettings(), benches=paths, output=tmp_path / "bench.json")
