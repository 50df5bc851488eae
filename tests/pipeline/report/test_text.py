"""Tables and paragraphs of text, and how figures are written in them."""

from pipeline.artifacts.bench_result import Speedup
from pipeline.artifacts.profile_result import Operation
from pipeline.report import console, figures
from pipeline.report.text import aligned, table, wrapped


def test_columns_are_as_wide_as_their_widest_cell():
    assert aligned([("name", "ms"), ("a", "12.5")]) == "name  ms\na     12.5"
    assert aligned([("name", "ms"), ("a", "12.5")], figures=True) == "name    ms\na     12.5"


def test_a_markdown_table_aligns_figures_to_the_right():
    rows = [{"model": "toy", "ms": "1.5"}, {"model": "repvgg_a0", "ms": "12.25"}]
    assert table(["model"], rows).splitlines() == [
        "| model     |    ms |",
        "| --------- | ----: |",
        "| toy       |   1.5 |",
        "| repvgg_a0 | 12.25 |",
    ]


def test_no_word_of_a_paragraph_is_broken():
    path = "/a/very/long/path/of-a/file.json"
    assert wrapped(f"- see {path} for more", "  ", width=20).splitlines() == ["- see", f"  {path}", "  for more"]


def test_what_is_not_known_is_a_dash():
    assert [figures.percent(None), figures.milliseconds(None), figures.median_latency(None, "fused")] == ["-"] * 3
    assert figures.speedup(None) == "-"
    assert [figures.percent(0.975), figures.milliseconds(0.1234), figures.megabytes(1_230_000)] == [
        "97.50", "0.123", "1.23",
    ]  # fmt: skip


def test_an_estimated_time_is_marked():
    timed = Operation(layer=None, weight=None, name="conv", kind="other", ms=1.5, estimated=True, share=1.0)
    assert figures.operation_time(timed) == "~1.500"


def test_a_speedup_names_both_files_and_its_interval():
    gained = Speedup(1.5, 1.4, 1.6, 9, (1.5,), "")
    assert console._speedup("fused", "branched", speedup=gained) == (
        "; fused is 1.50 times as fast as branched (95 % interval 1.40 to 1.60)"
    )
