"""logs/failed.json: which jobs of the last run of Snakemake failed, and why."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

PLACE = Path("logs/failed.json")
"""In the folder of the project."""


@dataclass(frozen=True)
class FailedJob:
    """A job that failed.

    Attributes:
        what: in words, as its rule says it: ``checking the coreml files of toy``.
        stage: its name.
        model, target: of which it was; None where it is of all.
        reason: the last message of its stage.
        log: path of the log.
    """

    what: str
    stage: str
    model: str | None
    target: str | None
    reason: str
    log: str


@dataclass(frozen=True)
class Failures:
    """What logs/failed.json says. After a run without a failure there is no such file.

    Attributes:
        jobs: that failed.
        unfinished: outputs that were wanted and not made, or are left from an earlier run and no longer count: those of
            the jobs that failed, and of all that depend on them.
    """

    TITLE: ClassVar[str] = "list of failed jobs"
    STAGE: ClassVar[str] = "snakemake"
    SCHEMA: ClassVar[int] = 1

    jobs: tuple[FailedJob, ...]
    unfinished: tuple[str, ...]

    @property
    def missing(self) -> list[tuple[str, str]]:
        """Model and target of each benchmark that was not made, sorted."""
        places = [Path(place).parts for place in self.unfinished]
        return sorted((one[2], one[1]) for one in places if (one[0], *one[3:]) == ("targets", "bench.json"))
