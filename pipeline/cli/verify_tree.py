"""`repnets verify-tree`: is everything that was built what its proofs are of?"""

from collections.abc import Iterator
from pathlib import Path

from pipeline.artifacts import digests, documents
from pipeline.artifacts.bundle_result import BundleResult
from pipeline.deploy import bundle_file
from pipeline.errors import GateError, InputError
from pipeline.report.text import aligned
from pipeline.verification import tree

HELP = """\
Compare every document of a built project with the files that it speaks of: fuse.json, verify.json, quantize.json and
reference-*.json in artifacts/; manifest.json, check.json, bench.json, profile.json and bundle.json in targets/. Each
holds the sha256 of all that it was made from. Nothing is built or run; what is read is digested.

A line a document: `bound`, or `NOT BOUND` and which file is another one, is missing, or has no proof. docs/proof.md
says what this shows and what it cannot.

Exit code 0: everything is bound. 1: something is not. 2: nothing was built there.

examples:
  repnets verify-tree
  repnets verify-tree ~/projects/screws
"""


def verify_tree(folder: Path = Path()) -> None:
    """Say of each document of a built project whether it is bound to the files that lie there.

    Args:
        folder: of the project; default: the current one.

    Raises:
        InputError: nothing was built there.
        GateError: something is not bound.
    """
    found = [*tree.walk(folder), *_bundles(folder)]
    print(aligned([_row(one) for one in found]))
    loose = [one for one in found if one.problems]
    if loose:
        names = ", ".join(str(one.path) for one in loose[:4]) + (" and others" if len(loose) > 4 else "")
        raise GateError(
            f"{len(loose)} of {len(found)} are not bound to what lies there: {names}. If you changed nothing, build "
            "again: snakemake all. It compares contents, and makes anew what does not belong together."
        )
    print(f"{len(found)} documents, all bound to what lies there")


def _bundles(folder: Path) -> Iterator[tree.Finding]:
    """Each bundle.json: its bundle is whole, and was packed with the manifest.json that lies there."""
    for path in sorted(folder.glob("targets/*/*/bundle.json")):
        problems = []
        try:
            note = documents.read(BundleResult, path)
            bundle = bundle_file.open_bundle(folder / note.bundle)
            if bundle.digest != note.digest:
                problems.append(f"{note.bundle} is another bundle than it names")
            manifests = [path.with_name("manifest.json"), path.parent / "chosen" / "manifest.json"]
            there = [digests.digest(one) for one in manifests if one.is_file()]
            if bundle.manifest.checked.subjects.get("manifest") not in there:
                problems.append(f"{note.bundle} was packed with another manifest.json")
        except InputError as error:
            problems.append(str(error))
        yield tree.Finding(path.relative_to(folder), 1, tuple(problems))


def _row(one: tree.Finding) -> tuple[str, str, str]:
    told = "; ".join(one.problems) or f"{one.subjects} files"
    return "NOT BOUND" if one.problems else "bound", str(one.path), told
