"""Every document of a built tree, and whether what it speaks of is what lies there now."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipeline.artifacts import digests, documents
from pipeline.artifacts.bench_result import BenchResult, ReferenceResult, TargetBench
from pipeline.artifacts.check_result import CheckResult
from pipeline.artifacts.evidence import Evidence
from pipeline.artifacts.export_result import Manifest
from pipeline.artifacts.fuse_result import FuseResult
from pipeline.artifacts.profile_result import ProfileResult
from pipeline.artifacts.quantize_result import QuantizeResult
from pipeline.artifacts.verify_result import VerifyResult
from pipeline.errors import InputError

_DOCUMENTS: tuple[tuple[str, type[Evidence]], ...] = (
    ("artifacts/*/fuse.json", FuseResult),
    ("artifacts/*/verify.json", VerifyResult),
    ("artifacts/*/quantize.json", QuantizeResult),
    ("artifacts/*/reference-*.json", ReferenceResult),
    ("targets/*/*/manifest.json", Manifest),
    ("targets/*/*/*/manifest.json", Manifest),  # of the candidates of `precision: auto`, and of the chosen one
    ("targets/*/*/check.json", CheckResult),
    ("targets/*/*/*/check.json", CheckResult),
    ("targets/*/*/bench.json", BenchResult),
    ("targets/*/*/profile.json", ProfileResult),
    ("targets/*/bench.json", TargetBench),
)
_PROOFS = (  # what must have a proof, and the file of the proof
    ("artifacts/*/fused.pt2", "verify.json"),
    ("artifacts/*/quantized.pt2", "quantize.json"),
    ("targets/*/*/manifest.json", "check.json"),
    ("targets/*/*/*/manifest.json", "check.json"),
)
_PLACES = {  # of the subjects that do not lie beside the document, from the root of the tree
    "split": ("artifacts/split.json",),
    "checkpoint": ("artifacts/{model}/checkpoint.safetensors", "artifacts/{model}/recalibrated.safetensors"),
    "fused": ("artifacts/{model}/fused.pt2",),
    "quantized": ("artifacts/{model}/quantized.pt2",),
    "verify": ("artifacts/{model}/verify.json",),
    "report": ("artifacts/{model}/quantize.json",),
    "reference": ("artifacts/{model}/reference-*.json", "targets/*/{model}/bench.json"),
}
_BESIDE = {name: f"{name}.json" for name in ("manifest", "check", "bench")}
_OWN = {".json", ".yaml"}  # suffixes of what lies in a folder of targets/ and is no exported file


@dataclass(frozen=True)
class Finding:
    """A file of the tree.

    Attributes:
        path: from the root.
        subjects: how many files it speaks of; 0 for one that is no document.
        problems: why it is not bound to them; empty where it is.
    """

    path: Path
    subjects: int
    problems: tuple[str, ...]


def walk(root: Path) -> list[Finding]:
    """Compare each document below ``artifacts/`` and ``targets/`` with the files that it speaks of.

    A program without its proof, a manifest without its check, and an exported file of which no manifest speaks are
    found as well.

    Args:
        root: folder of the project.

    Raises:
        InputError: nothing was built there.
    """
    digest = cache(digests.digest)
    found = [_of_document(root, path, kind, digest) for pattern, kind in _DOCUMENTS for path in _glob(root, pattern)]
    found += [
        Finding(path.relative_to(root), 0, (f"there is no {proof} beside it, so nothing is proved of it",))
        for pattern, proof in _PROOFS
        for path in _glob(root, pattern)
        if not path.with_name(proof).is_file()
    ]
    found += [
        Finding(path.relative_to(root), 0, ("no manifest.json beside it speaks of it",)) for path in _unnamed(root)
    ]
    if not found:
        raise InputError(f"{root} has no artifacts/ or targets/ with anything built. Name the folder of a project.")
    return sorted(found, key=lambda one: one.path)


def _glob(root: Path, pattern: str) -> list[Path]:
    return sorted(root.glob(pattern))


def _of_document(root: Path, path: Path, kind: type[Evidence], digest: Callable[[Path], str]) -> Finding:
    place = path.relative_to(root)
    try:
        document = documents.read(kind, path)
    except InputError as error:
        return Finding(place, 0, (str(error),))
    problems = list(_misplaced(place, document))
    for name, sha256 in document.subjects.items():
        candidates = _candidates(root, place, kind, name)
        if not candidates:
            problems.append(f"{name} is not there")
        elif sha256 not in map(digest, candidates):
            problems.append(f"{candidates[0].relative_to(root)} is another than it speaks of (sha256 {sha256[:12]})")
    if not document.subjects:
        problems.append("it speaks of no file")
    return Finding(place, len(document.subjects), tuple(problems))


def _misplaced(place: Path, document: Evidence) -> Iterator[str]:
    """Whether a document of one target and model lies in the folder of another."""
    for number, key in ((1, "target"), (2, "model")):
        told = getattr(document, key, None)
        if told is not None and place.parts[0] == "targets" and told != place.parts[number]:
            yield f"it is of the {key} {told}"


def _candidates(root: Path, place: Path, kind: type[Evidence], name: str) -> list[Path]:
    """Where a subject of a document can lie."""
    beside = root / place.parent
    if kind is TargetBench:
        return _there([beside / name / "bench.json"])
    if name in _PLACES:
        model = place.parts[1] if place.parts[0] == "artifacts" else place.parts[2]
        return [path for pattern in _PLACES[name] for path in _glob(root, pattern.format(model=model))]
    return _there([beside / _BESIDE.get(name, name)])


def _there(paths: list[Path]) -> list[Path]:
    return [path for path in paths if path.exists()]


def _unnamed(root: Path) -> Iterator[Path]:
    """Exported files of which no manifest beside them speaks."""
    for manifest in (*_glob(root, "targets/*/*/manifest.json"), *_glob(root, "targets/*/*/*/manifest.json")):
        try:
            named = documents.read(Manifest, manifest).files
        except InputError:  # which is told of the manifest itself
            continue
        others = [path for path in sorted(manifest.parent.iterdir()) if path.suffix not in _OWN]
        yield from (path for path in others if path.name not in named and not (path / "manifest.json").exists())
