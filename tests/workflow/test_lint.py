"""Snakemake's own lint holds, but for one wish that is waived."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]

# The stages run in the environment that runs Snakemake: `make run` makes it from pyproject.toml, on a laptop as
# on a build server, and a second declaration of the same packages would only drift from it.
WAIVED = {"Specify a conda environment or container for each rule."}


def test_lint():
    done = subprocess.run([sys.executable, "-m", "snakemake", "--lint"], cwd=PROJECT, capture_output=True, text=True)
    assert "Lints for" in done.stderr, done.stderr
    assert set(re.findall(r"^    \* (.*):$", done.stderr, re.MULTILINE)) <= WAIVED, done.stderr


def dry_run(folder, *words):
    return subprocess.run(
        [sys.executable, "-m", "snakemake", "--dry-run", "--nolock", *words],
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip


def test_notes_of_bundles_of_any_shape_stop_no_run(new_clone, tmp_path):
    clone = new_clone(
        tmp_path / "clone", tmp_path / "store", targets=("executorch",), config="models: {toy: , b: {arch: toy}}"
    )
    note = {"schema": 1, "digest": "", "size_bytes": 1, "signature": None}
    paths = ("x" * 5000, "a\0b")
    contents = ["", "{", "[]", "[" * 9999, *(json.dumps(note | {"bundle": path}) for path in paths)]
    for at, content in enumerate([*contents, None]):
        place = clone.folder / "targets" / "executorch" / (f"m{at}" if at else "toy") / "bundle.json"
        place.mkdir(parents=True) if content is None else place.parent.mkdir()
        if content is not None:
            place.write_text(content)
    done = dry_run(clone.folder, "bundles")
    assert done.returncode == 0 and "Traceback" not in done.stderr + done.stdout, done.stderr


@pytest.mark.parametrize("file", sorted(PROJECT.glob("workflows/*.smk")), ids=lambda file: file.stem)
def test_whatever_enters_a_shell_is_quoted(file):
    """Every placeholder of every command; an option with its value is a list of words."""
    commands = re.findall(r"^ +shell:\n((?: +\".*\"\n)+)", file.read_text() + "\n", re.MULTILINE)
    assert len(commands) == file.read_text().count("shell:")
    placeholders = [one for command in commands for one in re.findall(r"\{.*?\}", command)]
    assert len(placeholders) >= 4 * len(commands)
    assert [one for one in placeholders if not one.endswith(":q}")] == []
