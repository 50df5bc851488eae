"""The dates by which Snakemake decides which outputs to look at: what was built before an input was replaced is older.

Snakemake compares contents only if an input is newer than its output, and a copy can have a date in the past (`cp -p`,
rsync). The time of an inode's last change cannot be set, so it tells when a file was put in its place. No file is made
to look newer than it is: an output that was replaced itself would then pass for one of its present inputs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_STEP_NS = 1_000_000_000  # dates are compared in seconds by some file systems
_MODEL = (  # files in artifacts/<model>, in the order in which they are made of each other
    {"checkpoint.safetensors", "metrics.jsonl"},
    {"recalibrated.safetensors"},
    {"fused.pt2", "fuse.json", "structure.svg", "block.svg"},
    {"verify.json"},
    {"quantized.pt2", "quantize.json"},
)
_EXPORTED = len(_MODEL) + 1
_TARGET = ({"check.json"}, {"bench.json", "profile.json"}, {"bundle.json"})  # in targets/<target>/<model>, after those
_LAST = _EXPORTED + len(_TARGET) + 1


@dataclass(frozen=True)
class _File:
    """A file of the tree.

    Attributes:
        path: from the root.
        model: that it is of; None for one of all.
        rank: a file is made only of files of a lower one.
        dated, placed: its date, and when it was put there, ns.
    """

    path: Path
    model: str | None
    rank: int
    dated: int
    placed: int


def of_outputs(root: Path) -> dict[str, int]:
    """The dates of files that were built before a file that they are made of was put in its place.

    Args:
        root: folder of the project.

    Returns:
        By path: ns, earlier than that of the replaced file. What is not named has its own date.
    """
    dates: dict[str, int] = {}
    files = sorted(_files(root), key=lambda file: file.rank)
    of_model: dict[str | None, list[_File]] = {None: files}
    for file in files:
        if file.model:
            of_model.setdefault(file.model, [one for one in files if one.rank == 0]).append(file)
    for file in files:
        before = [
            dates.get(str(one.path), one.dated) - _STEP_NS
            for one in of_model[file.model]
            if one.placed > file.dated + _STEP_NS and one.rank < file.rank
        ]
        if before and min(before) < file.dated:
            dates[str(file.path)] = min(before)
    return dates


def _files(root: Path) -> Iterator[_File]:
    patterns = ("artifacts/*.json", "artifacts/*/*.*", "targets/*/*.json", "targets/*/*/*.*", "targets/*/*/*/*.*")
    for path in (path for pattern in (*patterns, "report.md") for path in root.glob(pattern) if path.is_file()):
        status, place = path.stat(), path.relative_to(root)
        yield _File(place, _model(place), _rank(place), status.st_mtime_ns, status.st_ctime_ns)


def _model(place: Path) -> str | None:
    at = {"artifacts": 1, "targets": 2}.get(place.parts[0], 0)
    return place.parts[at] if 0 < at < len(place.parts) - 1 else None


def _rank(place: Path) -> int:
    if place.parts == ("artifacts", "split.json"):
        return 0
    for first, groups in ((1, _MODEL), (_EXPORTED + 1, _TARGET)):
        for number, names in enumerate(groups):
            if place.name in names and _model(place):
                return first + number
    if place.name == "report.md":
        return _LAST + 1
    return _EXPORTED if _model(place) else _LAST
