"""What `repnets export` tells at the end: what was made, what was proved of it, and what was refused."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts import documents, failures, metric
from pipeline.artifacts.check_result import CheckResult
from pipeline.artifacts.export_result import Manifest
from pipeline.artifacts.failures import FailedJob, Failures
from pipeline.artifacts.fuse_result import FuseResult
from pipeline.artifacts.verify_result import VerifyResult
from pipeline.errors import shown
from pipeline.report.figures import megabytes
from pipeline.report.text import aligned, wrapped


@dataclass(frozen=True)
class Asked:
    """A file that was asked for.

    Attributes:
        target, model: of the project.
        is_int8: its precision is.
        refusal: why it was not even tried; None where it was.
    """

    target: str
    model: str
    is_int8: bool
    refusal: str | None

    @property
    def folder(self) -> str:
        """Where it lies in the project."""
        return f"targets/{self.target}/{self.model}"


def tell(folder: Path, asked: Sequence[Asked]) -> list[str]:
    """Print what became of what was asked for.

    Args:
        folder: of the project.
        asked: all of it.

    Returns:
        Names of the targets that were refused.
    """
    failed = documents.read(Failures, folder / failures.PLACE) if (folder / failures.PLACE).is_file() else None
    unfinished = failed.unfinished if failed else ()
    for model in dict.fromkeys(one.model for one in asked):
        if f"artifacts/{model}/verify.json" not in unfinished and (folder / f"artifacts/{model}/verify.json").is_file():
            print(f"\n{_fold(folder / 'artifacts' / model)}")
    made = [one for one in asked if one.refusal is None and f"{one.folder}/check.json" not in unfinished]
    if made:
        head = ("target", "precision", "MB", "error", "allowed", "kept", "file")
        print(f"\n{aligned([head, *(row for one in made for row in _made(folder, one))])}")
        print(wrapped(_LEGEND.format(_checked_on(folder, made[0]))))
    lost = [one for one in asked if one not in made]
    for one in lost:
        print(f"\nREFUSED  {one.target}")
        if one.refusal is None:
            job = _cause(one, failed.jobs)
            print(wrapped(f"{job.what}: {job.reason}", "  ", first="  "))
            print(f"  log: {shown(folder / job.log)}")
        else:
            print(wrapped(one.refusal, "  ", first="  "))
    return [one.target for one in lost]


_LEGEND = (
    "error: of the file in its own arithmetic against the network, of the largest output; kept: {}. Everything is in "
    "check.json beside each file."
)


def _fold(artifacts: Path) -> str:
    """What folding gained, and its proof."""
    fused = documents.read(FuseResult, artifacts / "fuse.json")
    proof = documents.read(VerifyResult, artifacts / "verify.json")
    before, after = (one.convolutions for one in (fused.before, fused.after))
    exact = max(proof.float64.max_relative_error.values())
    rounded = max(one.fused for one in proof.float32.relative_error.values())
    return (
        f"{artifacts.name}: {before} convolutions folded to {after}; in float64 the same to {exact:.1e} (allowed "
        f"{proof.float64.tolerance:.0e}), in float32 to {rounded:.1e}"
    )


def _made(folder: Path, one: Asked) -> list[tuple[str, ...]]:
    """A row for the file that ships, and one for each other that goes with it, an engine say."""
    place = folder / one.folder
    written = documents.read(Manifest, place / "manifest.json")
    checked = documents.read(CheckResult, place / "check.json").forms[written.shipped]
    gate = checked.precision
    error = gate.max_relative_error if gate.max_relative_error is not None else gate.mean_relative_error
    files = list(written.shipped_files.items())
    first, size = files[0][0], files[0][1].size_bytes
    figures = ("-", "-") if error is None else (f"{error:.1e}", f"{gate.tolerance:.0e}")
    row = (one.target, written.shipped_form.precision, megabytes(size), *figures, f"{checked.agreement:.2%}")
    others = [("", "", megabytes(facts.size_bytes), "", "", "", shown(place / name)) for name, facts in files[1:]]
    return [(*row, shown(place / first)), *others]


def _checked_on(folder: Path, one: Asked) -> str:
    """What `kept` is of, in words."""
    result = documents.read(CheckResult, folder / one.folder / "check.json")
    written = documents.read(Manifest, folder / one.folder / "manifest.json")
    images = f"{result.images:,} {'generated images' if result.accuracy.metric == metric.NONE else 'pictures'}"
    if written.preprocessing.classes:
        return f"the share of {images} that get the same class as from the network as it came, in float"
    return f"how far the outputs agree with those of the network as it came, in float, on {images}"


def _cause(one: Asked, jobs: Sequence[FailedJob]) -> FailedJob:
    """The failed job that a file waits for: its own, one of its model, or one of all models."""
    own = [job for job in jobs if (job.model, job.target) == (one.model, one.target)]
    of_model = [job for job in jobs if (job.model, job.target) == (one.model, None)]
    concerned = [job for job in of_model if one.is_int8 or job.stage != "quantize"]
    return (own or concerned or [job for job in jobs if job.model is None] or list(jobs))[0]
