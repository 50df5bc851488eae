"""Where the workflow and what `repnets init` copies lie: in the clone, or inside of an installed package.

pyproject.toml puts them into the wheel, in the folder pipeline/project, as they lie in the clone.
"""

from importlib import metadata
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
FOLDER = _PACKAGE / "project" if (_PACKAGE / "project").is_dir() else _PACKAGE.parent
"""Holds Snakefile, workflows/, targets/ and profiles/."""

SNAKEFILE = str(FOLDER / "Snakefile")
"""What the Snakefile of a project outside of the clone includes."""


def version() -> str:
    """Of repnets, as it was installed; ``unknown`` where it runs from a folder that was not installed."""
    try:
        return metadata.version("repnets")
    except metadata.PackageNotFoundError:
        return "unknown"
