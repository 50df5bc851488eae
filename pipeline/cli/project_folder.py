"""`repnets report` and `repnets clean`: what was built in the folder of a project."""

import webbrowser
from collections.abc import Iterator
from pathlib import Path

from pipeline.artifacts import store_access
from pipeline.errors import InputError, shown

REPORT_HELP = """\
Say where the report of a project is; --open shows it in the browser. `snakemake all` writes it, also after a failure.

examples:
  repnets report --open
  repnets report ../screws
"""

CLEAN_HELP = """\
Delete what was built in a project: artifacts/, logs/, report.md, report.html, Snakemake's own .snakemake/, and in
targets/ the exported files and their documents. What you wrote stays: config.yaml, Snakefile, targets/*/target.yaml; so
do dist/, with the bundles, and the store, from which a new build takes everything that has not changed.

examples:
  repnets clean --dry-run
  repnets clean ../screws
"""

_BUILT = ("artifacts", "logs", "report.md", "report.html", ".snakemake")
_OF_A_MODEL = ("manifest.json", "check.json", "bench.json")


def report(folder: Path = Path(), *, open: bool = False) -> None:
    """Print where the report is, and show it.

    Args:
        folder: of the project.
        open: in the browser.

    Raises:
        InputError: there is none; no browser could be started.
    """
    page = folder / "report.html"
    if not page.is_file():
        raise InputError(f"{shown(page)} does not exist. Build it: snakemake --cores 2 all, in that folder.")
    print(shown(page))
    if open and not webbrowser.open(page.resolve().as_uri()):
        raise InputError(f"no browser could be started. Open {shown(page.resolve())} in one.")


def clean(folder: Path = Path(), *, dry_run: bool = False) -> None:
    """Delete what was built in a project.

    Args:
        folder: of the project.
        dry_run: say what would be deleted, and delete nothing.

    Raises:
        InputError: it is no folder of a project.
    """
    if not all((folder / name).is_file() for name in ("Snakefile", "config.yaml")):
        raise InputError(
            f"{shown(folder.resolve())} has no Snakefile and config.yaml, so it is no project. Name the folder of one."
        )
    found = list(_built(folder))
    for place in found:
        print(f"{'would delete' if dry_run else 'deleted'} {shown(place)}")
        if not dry_run:
            store_access.throw_away(place)
    if not found:
        print("there is nothing to delete")


def _built(folder: Path) -> Iterator[Path]:
    for name in _BUILT:
        if (folder / name).exists():
            yield folder / name
    for target in sorted(folder.glob("targets/*/")):
        if (target / "bench.json").is_file():
            yield target / "bench.json"
        for place in sorted(target.glob("*/")):
            if any((place / name).is_file() for name in _OF_A_MODEL):
                yield place
