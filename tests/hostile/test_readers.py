"""Damaged files through every reader: `python -m tests.hostile` does the same with as many as wanted."""

import os
import subprocess
import time
from collections import Counter

import pytest

from pipeline.errors import InputError
from tests.hostile import child, harness
from tests.hostile.readers import READERS

COUNT = 40
"""Cases of each reader: 480 in about 15 s of one core."""


def test_every_reader_answers_or_refuses(tmp_path):
    jobs = [(reader, number) for reader in READERS for number in range(COUNT)]
    cases = list(harness.run(tmp_path, jobs))
    wrong = [f"{case.reader} {case.number}: {case.why}" for case in cases if case.outcome == child.WRONG]
    assert wrong == []
    counts = Counter(case.reader for case in cases if case.outcome == child.REFUSED)
    assert len(cases) == len(jobs) and all(counts[reader] >= COUNT // 8 for reader in READERS), counts


@pytest.fixture(scope="module")
def watch(tmp_path_factory):
    """A watch over a folder; the hook stays for the life of the process, and sees nothing once it is off."""
    return child.Watch(tmp_path_factory.mktemp("watched"))


@pytest.fixture
def outcome(watch, monkeypatch):
    """What the harness says of a reader."""

    def judge(read):
        watch.seen.clear()
        found = child.judged(read, watch.inside, (InputError,), watch)
        return (child.WRONG, watch.seen[0]) if watch.seen else found

    monkeypatch.setattr(child, "SECONDS", 0.2)
    before = child.signal.signal(child.signal.SIGALRM, child._stop)
    yield judge
    child.signal.signal(child.signal.SIGALRM, before)


def says(message):
    def read(folder):
        raise InputError(message)

    return read


def test_an_answer_and_a_refusal_are_right(outcome):
    assert outcome(lambda folder: (folder / "copied").write_text("inside")) == (child.ANSWERED, "")
    assert outcome(says("it is damaged")) == (child.REFUSED, "it is damaged")


@pytest.mark.parametrize(
    "read, why",
    [
        (lambda folder: {}["missing"], "KeyError"),
        (lambda folder: time.sleep(5), "not done after"),
        (lambda folder: bytearray(3 << 30), "MemoryError"),
        (lambda folder: (folder.parent / "outside").write_text("x"), "writes"),
        (lambda folder: os.mkdir(folder.parent / "other"), "os.mkdir"),
        (lambda folder: subprocess.run(["true"], check=True), "subprocess.Popen"),
        (says("one\ntwo"), "several lines"),
    ],
    ids=["another error", "slow", "large", "writes", "makes a folder", "starts", "lines"],
)
def test_anything_else_is_seen(outcome, read, why):
    found, told = outcome(read)
    assert found == child.WRONG and why in told


def test_a_long_message_is_refused_in_short(outcome):
    found, told = outcome(says("x" * 5000))
    assert found == child.REFUSED and len(told.encode()) < 2000


def test_a_process_that_dies_is_told_by_its_signal():
    dying = subprocess.Popen(["sh", "-c", "kill -SEGV $$"], stdout=subprocess.PIPE, text=True)
    with dying:
        assert harness._line(dying, 10) == ("", "the process died: SIGSEGV")
    silent = subprocess.Popen(["sleep", "60"], stdout=subprocess.PIPE, text=True)
    with silent:
        assert harness._line(silent, 0.1) == ("", "the process did not answer within 0.1 s")
