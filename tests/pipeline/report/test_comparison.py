"""Two builds held against each other: which changes are regressions, and what is not judged."""

from dataclasses import replace

import pytest

from pipeline.artifacts import documents, metric
from pipeline.artifacts.bench_result import Conditions
from pipeline.report.comparison import Built, changed_versions, compare
from tests.fixtures.documents import completed

KEY = ("toy", "phone")
COUNTED = {"operations": 34, "convolutions": 10, "int8": 8, "macs": 1e6, "parameters": 1e4, "size": 1e6, "outside": 2}


def built(ms=1.0, half_width=0.001, kind="top-1", **values):
    conditions = documents.of(Conditions, completed(Conditions, {"busy": False, "cpu": "A55"}))
    interval = (ms * (1 - half_width), ms * (1 + half_width))
    figures = {**COUNTED, "metric": 0.9, "latency": ms, "memory": 2**20, **values}
    return Built(figures, kind, interval, conditions, "ok", {"executorch": "1.5.0"})


def verdicts(before, after, **limits):
    return {row.measure: row.verdict for row in compare({KEY: before}, {KEY: after}, limits) if row.verdict != "same"}


def test_the_same_build_is_the_same():
    rows = compare({KEY: built()}, {KEY: built()}, {})
    assert {row.verdict for row in rows} == {"same"} and len(rows) == 10
    assert not any(row.change for row in rows)


@pytest.mark.parametrize("name", ["operations", "convolutions", "macs", "parameters", "outside"])
def test_what_is_counted_may_not_grow(name):
    assert verdicts(built(), built(**{name: COUNTED[name] + 1})) == {name: "regression"}
    assert verdicts(built(), built(**{name: COUNTED[name] - 1})) == {name: "better"}
    assert verdicts(built(), built(**{name: COUNTED[name] + 1}), **{name: 1.0}) == {name: "worse"}


def test_fewer_int8_layers_are_a_regression():
    assert verdicts(built(), built(int8=7)) == {"int8": "regression"}


def test_sizes_and_memory_have_limits():
    assert verdicts(built(), built(size=1.005e6, memory=1.05 * 2**20)) == {"size": "worse", "memory": "worse"}
    assert verdicts(built(), built(size=1.02e6, memory=1.2 * 2**20)) == {"size": "regression", "memory": "regression"}


@pytest.mark.parametrize(
    ("kind", "before", "within", "beyond", "limit"),
    [("top-1", 0.9, 0.895, 0.885, 0.02), ("PSNR [dB]", 30.0, 29.8, 29.6, 0.005)],
)
def test_a_metric_may_drop_by_its_own_unit(kind, before, within, beyond, limit):
    """A limit of 2 is two points of a share, and one of 0.5 half a dB."""
    old = built(kind=kind, metric=before)
    name = metric.plain(kind)
    assert verdicts(old, built(kind=kind, metric=within)) == {name: "worse"}
    assert verdicts(old, built(kind=kind, metric=beyond)) == {name: "regression"}
    assert verdicts(old, built(kind=kind, metric=beyond), metric=limit) == {name: "worse"}


def test_a_latency_is_worse_where_the_intervals_do_not_meet():
    assert verdicts(built(), built(1.03)) == {"latency": "regression"}
    assert verdicts(built(), built(1.01)) == {"latency": "worse"}
    assert verdicts(built(), built(0.9)) == {"latency": "better"}
    assert verdicts(built(half_width=0.02), built(1.03, 0.02)) == {}


@pytest.mark.parametrize(
    ("changed", "why"), [({"busy": True}, "busy in the second"), ({"cpu": "A76"}, "cpu is not the same")]
)
def test_a_latency_of_another_machine_or_a_busy_one_is_not_judged(changed, why):
    """What is counted still is."""
    after = built(1.5, operations=35)
    after = replace(after, conditions=replace(after.conditions, **changed))
    assert verdicts(built(), after) == {"latency": "not judged", "memory": "not judged", "operations": "regression"}
    row = next(row for row in compare({KEY: built()}, {KEY: after}, {}) if row.measure == "latency")
    assert why in row.why and row.change == "+50.0%"


def test_files_that_are_missing_new_or_failed():
    def verdict(before, after):
        return [(row.measure, row.after, row.verdict) for row in compare(before, after, {})][:1]

    assert verdict({KEY: built()}, {}) == [("file", "missing", "regression")]
    assert verdict({}, {KEY: built()}) == [("file", "there", "better")]
    failed = replace(built(), status="failed", latency_interval=None, values=COUNTED)
    assert verdict({KEY: built()}, {KEY: failed}) == [("file", "failed", "regression")]


def test_versions_that_changed_are_named():
    after = replace(built(), versions={"executorch": "1.5.1", "torch": "2.14.0"})
    assert changed_versions({KEY: built()}, {KEY: after}) == ["executorch 1.5.0 to 1.5.1", "torch none to 2.14.0"]
