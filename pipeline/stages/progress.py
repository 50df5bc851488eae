"""What becomes of the jobs of a run of Snakemake: which fail and why, and a line as each begins and ends.

Snakemake tells its loggers of each job, by the events of its interface for logger plugins.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import exit_codes
from pipeline.artifacts import documents, failures
from pipeline.artifacts.atomic import replacing
from pipeline.artifacts.failures import FailedJob, Failures

VARIABLE = "REPNETS_PROGRESS"
"""Environment variable: where it is set, a line on stdout tells of each job as it begins and as it ends."""


@dataclass(frozen=True)
class _Job:
    """A job that began.

    Attributes:
        what: in words.
        began: `time.monotonic`, seconds.
    """

    what: str
    began: float


class Progress:
    """The jobs of one run.

    Args:
        tell: what is given a line as a job begins and ends.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._running: dict[int, _Job] = {}
        self._failed: list[FailedJob] = []

    def hear(self, record: logging.LogRecord) -> None:
        """Take note of what Snakemake logs, where it is of a job."""
        event = str(getattr(record, "event", ""))
        if event == "job_info":
            job = _Job(record.rule_msg or record.rule_name, time.monotonic())
            self._running[record.jobid] = job
            self._tell(f"begins  {job.what}")
        elif event == "job_finished" and (job := self._running.pop(record.job_id, None)):
            self._tell(f"done    {job.what}, {_seconds(job)}")
        elif event == "job_error" and (job := self._running.pop(record.jobid, None)):
            failed = _failed(job.what, record)
            self._failed.append(failed)
            self._tell(f"FAILED  {job.what}, {_seconds(job)}; {failed.log}")

    def failures(self, unfinished: Iterable[str] = ()) -> Failures:
        """Which jobs failed; `unfinished` are outputs that were not made."""
        return Failures(tuple(self._failed), tuple(sorted(unfinished)))


def follow() -> Progress:
    """Follow a run of Snakemake that begins in this process and in this folder."""
    from snakemake.logging import logger

    failures.PLACE.unlink(missing_ok=True)
    progress = Progress(_print if os.environ.get(VARIABLE) else lambda line: None)
    handler = logging.Handler()
    handler.emit = progress.hear
    logger.addHandler(handler)
    return progress


def conclude(progress: Progress, workflow: Any) -> Failures:
    """Write which jobs of a run failed, at its end.

    Args:
        workflow: Snakemake's, which knows what was wanted and not made.
    """
    found = progress.failures(str(path) for job in workflow.dag.needrun_jobs() for path in job.output)
    failures.PLACE.parent.mkdir(exist_ok=True)
    with replacing(failures.PLACE) as fresh:
        documents.write(fresh, found)
    for job in found.jobs:
        print(f"failed: {job.what}: {job.reason} Its log: {job.log}", file=sys.stderr, flush=True)
    return found


def _failed(what: str, record: logging.LogRecord) -> FailedJob:
    """A job that failed. Whose it is, the places of its output and its log say."""
    log = Path(next(iter(record.log), ""))
    first, *inner = Path(record.output[0]).parts
    target = inner[0] if first == "targets" else None
    model = inner[1] if first == "targets" and len(inner) > 2 else inner[0] if len(inner) > 1 and not target else None
    text = log.read_text(errors="replace") if log.is_file() else ""
    return FailedJob(what, log.stem, model, target, exit_codes.reason_in(text), log.as_posix())


def _seconds(job: _Job) -> str:
    return f"{time.monotonic() - job.began:.0f} s"


def _print(line: str) -> None:
    print(line, flush=True)
