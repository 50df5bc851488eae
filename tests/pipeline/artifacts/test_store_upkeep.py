"""What the store holds, and making room: the longest unused goes first, and nothing that is whole is harmed."""

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.artifacts import store
from pipeline.artifacts import store_upkeep as upkeep

PROJECT = Path(store.__file__).resolve().parents[2]
DAY = 86_400


def build(folder: Path, number: int, size: int = 1000) -> bool:
    """Run a stage whose result has a size. Whether it came from the store."""
    (source := folder / f"{number}.txt").write_text(str(number))
    return store.cached(
        f"stage {number % 2}", settings={}, inputs={"source": source}, outputs={"result": folder / f"{number}.bin"},
        code=("pipeline.errors",), packages=(), build=lambda places, _: places["result"].write_bytes(b"x" * size),
    )  # fmt: skip


@pytest.fixture
def filled(tmp_path, monkeypatch) -> Path:
    """Five results, the first unused for five days, the last for one."""
    monkeypatch.setenv("REPNETS_STORE", str(tmp_path / "store"))
    for number in range(5):
        build(tmp_path, number)
        (newest,) = [entry for entry in upkeep.entries() if time.time() - entry.used < DAY / 2]
        when = time.time() - (5 - number) * DAY
        os.utime(newest.place / "entry.json", (when, when))
    return tmp_path


def command(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli.main", "store", *words], cwd=PROJECT, capture_output=True, text=True
    )


def test_entries_come_with_stage_and_size_the_longest_unused_first(filled):
    found = upkeep.entries()
    assert [entry.stage for entry in found] == ["stage 0", "stage 1", "stage 0", "stage 1", "stage 0"]
    assert all(1000 < entry.size_bytes < 2000 and entry.is_mine for entry in found)
    assert [round((time.time() - entry.used) / DAY) for entry in found] == [5, 4, 3, 2, 1]
    assert upkeep.entries() == found, "to list is not to use"


def test_a_hit_counts_as_use(filled):
    oldest = upkeep.entries()[0]
    assert build(filled, 0) is True
    if "noatime" in subprocess.run(["findmnt", "-no", "OPTIONS", "-T", filled], capture_output=True, text=True).stdout:
        pytest.skip("this disk keeps no times of reading")
    assert upkeep.entries()[-1].key == oldest.key


def test_what_goes_is_old_or_too_much(filled):
    found = upkeep.entries()
    assert upkeep.surplus(found, unused_seconds=3.5 * DAY) == found[:2]
    assert upkeep.surplus(found, size_bytes=2 * found[0].size_bytes + 100) == found[:3]
    assert upkeep.surplus(found, size_bytes=10**9) == []
    assert upkeep.surplus(found, size_bytes=0) == found


def test_what_was_removed_is_built_again_and_the_rest_hits(filled):
    assert all(map(upkeep.remove, upkeep.entries()[:2]))
    assert [build(filled, number) for number in range(5)] == [False, False, True, True, True]
    assert not list((filled / "store" / "work").iterdir())


def test_what_is_being_built_is_left(filled):
    entry = upkeep.entries()[0]
    with (filled / "store" / "locks" / entry.key).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert upkeep.remove(entry) is False
    assert entry.place.is_dir() and upkeep.remove(entry) is True


@pytest.mark.parametrize("harm", ["content", "missing", "entry.json"])
def test_damage_is_found(filled, harm):
    entry = upkeep.entries()[2]
    result = next((entry.place / "result").iterdir())
    if harm == "content":
        result.write_bytes(b"y" * 1000)
    elif harm == "missing":
        result.unlink()
    else:
        (entry.place / "entry.json").write_text("{")
    assert [bool(upkeep.damaged(one)) for one in upkeep.entries() if one.place != entry.place] == [False] * 4
    done = command("verify")
    assert done.returncode == 1 and "1 of 5 results were damaged" in done.stderr
    assert not entry.place.exists() and command("verify").returncode == 0


def test_the_command(filled, tmp_path):
    listed = command().stdout
    assert f"store: {tmp_path / 'store'}" in listed and "stage 0" in listed and "5 days ago" in listed
    told = command("prune", "--older-than", "3d", "--dry-run").stdout
    assert told.startswith("would delete 3 of 5 results") and len(upkeep.entries()) == 5
    assert command("prune", "--older-than", "3d").stdout.startswith("deleted 3 of 5 results")
    assert len(upkeep.entries()) == 2
    command("prune", "--to", "0KB")
    assert command("list").stdout.endswith("It is empty.\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prune"], "say what is to go"),
        (["list", "--to", "5GB"], "are of `repnets store prune`"),
        (["prune", "--to", "5"], "`5` is no size; write 500MB or 5GB"),
        (["prune", "--older-than", "soon"], "`soon` is no time; write 12h, 30d or 4w"),
    ],
)
def test_a_wrong_command_is_refused(filled, words, message):
    done = command(*words)
    assert done.returncode == 2 and message in done.stderr


def test_an_empty_store(tmp_path, monkeypatch):
    monkeypatch.setenv("REPNETS_STORE", str(tmp_path / "none"))
    assert upkeep.entries() == [] and upkeep.unfinished_bytes() == 0
    assert command().stdout.endswith("It is empty.\n") and not (tmp_path / "none").exists()
