"""The dates that Snakemake is told: an output is older than an input that was replaced, and nothing is ever newer."""

import os
import time

import pytest

from pipeline.stages import dates

ORDER = (
    "artifacts/split.json",
    "artifacts/toy/checkpoint.safetensors",
    "artifacts/toy/fused.pt2",
    "artifacts/toy/verify.json",
    "targets/phone/toy/fused.pte",
    "targets/phone/toy/check.json",
    "targets/phone/toy/bench.json",
    "targets/phone/bench.json",
    "report.md",
)
HOUR = 3600 * 1_000_000_000


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Files that were made one after the other, a minute apart, and put there then."""
    placed = {}
    began = time.time_ns() - HOUR
    for number, name in enumerate(ORDER):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        placed[path] = began + number * HOUR // 60
        os.utime(path, ns=(placed[path], placed[path]))
    of_disk = dates._files

    def files(root):  # nothing but the kernel sets the time of an inode's change
        for one in of_disk(root):
            yield dates._File(one.path, one.model, one.rank, one.dated, placed.get(root / one.path, one.placed))

    monkeypatch.setattr(dates, "_files", files)
    return tmp_path, placed


def replace_by_older(tree, name, age=2 * HOUR):
    root, placed = tree
    path = root / name
    old = time.time_ns() - age
    os.utime(path, ns=(old, old))
    placed[path] = time.time_ns()
    return old


def test_what_was_built_in_order_keeps_its_dates(tree):
    assert dates.of_outputs(tree[0]) == {}


@pytest.mark.parametrize("name", ORDER[:-1])
def test_all_that_was_made_of_a_file_is_older_than_the_one_in_its_place(tree, name):
    old = replace_by_older(tree, name)
    told = dates.of_outputs(tree[0])
    assert set(told) == set(ORDER[ORDER.index(name) + 1 :])
    assert max(told.values()) < old


@pytest.mark.parametrize("name", ORDER)
def test_no_file_is_made_newer_than_it_is(tree, name):
    """A former output, put back after its input changed, is still older than that input."""
    replace_by_older(tree, name, age=HOUR * 3 // 2)
    for path, date in dates.of_outputs(tree[0]).items():
        assert date < (tree[0] / path).stat().st_mtime_ns
    assert name not in dates.of_outputs(tree[0])


def test_two_files_replaced_keep_their_order(tree):
    """So that each is newer than what was made of it."""
    replace_by_older(tree, ORDER[1])
    replace_by_older(tree, ORDER[2], age=HOUR // 2)
    told = dates.of_outputs(tree[0])
    assert told[ORDER[3]] < told[ORDER[2]] < (tree[0] / ORDER[1]).stat().st_mtime_ns


def test_other_models_are_left_alone(tree):
    root, _ = tree
    other = root / "artifacts/other/fused.pt2"
    other.parent.mkdir()
    other.write_text("")
    os.utime(other, ns=(time.time_ns() - HOUR,) * 2)
    replace_by_older(tree, ORDER[1])
    assert "artifacts/other/fused.pt2" not in dates.of_outputs(root)
