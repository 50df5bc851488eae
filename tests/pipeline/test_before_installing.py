"""What `make` says before it installs anything."""

import subprocess
import tomllib
from pathlib import Path

import pytest

from pipeline import before_installing as before

PROJECT = Path(before.__file__).resolve().parents[1]
OLD = [
    path
    for version in ("2.7", "3.6", "3.8", "3.10")
    for path in sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
]


def test_the_versions_are_those_of_the_project():
    wanted = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["requires-python"]
    low, high = (".".join(map(str, version)) for version in before.VERSIONS)
    assert wanted == f">={low},<{high}"


@pytest.mark.parametrize(
    ("version", "does"), [((3, 10, 12), False), ((3, 11, 0), True), ((3, 13, 9), True), ((3, 14), False)]
)
def test_a_version_that_does_not_do_is_named(version, does):
    said = before.python_problem(version)
    assert bool(said) != does
    assert does or (said.startswith(f"Python 3.{version[1]} cannot run repnets") and "PYTHON=python3.12" in said)


def test_a_disk_without_room_is_named():
    assert before.space_problem("/data", 9e9) == ""
    assert before.space_problem("/data", 4.25e9).startswith("/data has 4.2 GB free")


def test_this_machine_does(tmp_path):
    assert before.main(f"{tmp_path}/not/made/yet") == 0


@pytest.mark.parametrize("python", OLD or [None])
def test_an_old_python_is_told_so_by_make(python, tmp_path):
    if python is None:
        pytest.skip("no older Python is installed here")
    command = ["make", f"{tmp_path}/venv/.installed", f"PYTHON={python}", f"VENV={tmp_path}/venv"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 2 and "cannot run repnets" in done.stderr
    assert not (tmp_path / "venv").exists()
