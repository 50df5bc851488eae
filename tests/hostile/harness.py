"""Run damaged files through the readers, in a process that may die, and count the outcomes."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.hostile.child import READY, SECONDS, TEMPORARY, WRONG

PROJECT = Path(__file__).resolve().parents[2]
_START_SECONDS = 300  # imports, and the samples
_GRACE_SECONDS = 20  # for native code, which no alarm interrupts


@dataclass(frozen=True)
class Case:
    """One damaged file, and what became of it.

    Attributes:
        reader, number: which; they give the same file again.
        outcome: one of `child.OUTCOMES`.
        why: the message of a refusal, or what is wrong.
    """

    reader: str
    number: int
    outcome: str
    why: str


def run(work: Path, jobs: Iterable[tuple[str, int]]) -> Iterator[Case]:
    """Try each job, a reader and a number; the process is started again where it dies.

    Args:
        work: a folder for the samples, which are built there once, and for the damaged files.
        jobs: names of readers, and numbers.
    """
    child = None
    try:
        for reader, number in jobs:
            child = child or _started(work)
            print(reader, number, file=child.stdin, flush=True)
            line, death = _line(child, SECONDS + _GRACE_SECONDS)
            found = json.loads(line) if line else {"outcome": WRONG, "why": death}
            if not line:
                _end(child)
                child = None
            yield Case(reader, number, **found)
    finally:
        if child is not None:
            _end(child)


def _end(child: subprocess.Popen[str]) -> None:
    child.kill()
    with suppress(BrokenPipeError), child:  # which closes its pipes
        pass


def _started(work: Path) -> subprocess.Popen[str]:
    (work / TEMPORARY).mkdir(parents=True, exist_ok=True)
    with (work / "log").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.child", str(work)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=PROJECT,
            env=os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "TMPDIR": str(work / TEMPORARY)},
        )
    line, death = _line(child, _START_SECONDS)
    if line.strip() != READY:
        _end(child)
        raise RuntimeError(f"the samples were not built; {death}: {(work / 'log').read_text()[-2000:]}")
    return child


def _line(child: subprocess.Popen[str], seconds: float) -> tuple[str, str]:
    """What it prints next, or how it ended."""
    ready, _, _ = select.select([child.stdout], [], [], seconds)
    if line := child.stdout.readline() if ready else "":
        return line, ""
    if not ready:
        child.kill()
        child.wait()
        return "", f"the process did not answer within {seconds} s"
    code = child.wait()
    return "", f"the process died: {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"
