"""Dates as Snakemake sees them: a replaced file is noticed, and nothing looks newer than it is."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
SNAKEFILE = """
from pipeline.stages import jobs

rule fused:
    input: "artifacts/toy/checkpoint.txt"
    output: "artifacts/toy/fused.txt"
    shell: "cp {input} {output}"

rule checkpoint:
    input: jobs.split(workflow)
    output: "artifacts/toy/checkpoint.txt"
    shell: "cp {input} {output}"

rule split:
    output: "artifacts/split.json"
    shell: "echo digits > {output}"
"""


pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which all was built a minute ago."""
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    snakemake(tmp_path)
    then = time.time() - 60
    for name in ("split.json", "toy/checkpoint.txt", "toy/fused.txt"):
        os.utime(tmp_path / "artifacts" / name, (then, then))
    return tmp_path


def snakemake(folder: Path, *words: str) -> set[str]:
    """The rules that run, or would."""
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", *words], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT)}, check=True,
    )  # fmt: skip
    lines = (done.stdout + done.stderr).splitlines()
    return {line.split()[1].rstrip(":") for line in lines if line.startswith(("rule ", "localrule "))}


def replace_by_an_older_file(file: Path) -> None:
    other = file.with_suffix(".other")
    other.write_text("others")
    os.utime(other, (1_000_000_000, 1_000_000_000))
    shutil.copy2(other, file)
    other.unlink()


def test_a_file_that_was_replaced_is_noticed_though_its_output_was_changed_in_mode_since(folder):
    replace_by_an_older_file(folder / "artifacts/toy/checkpoint.txt")
    assert snakemake(folder, "-n") == {"fused"}
    (folder / "artifacts/toy/fused.txt").chmod(0o644)  # the inode's time of the stale file is the latest of all
    assert snakemake(folder, "-n") == {"fused"}
    snakemake(folder)
    assert (folder / "artifacts/toy/fused.txt").read_text() == "others"


def test_modes_names_and_copies_of_the_same_content_start_nothing(folder, tmp_path_factory):
    copied = tmp_path_factory.mktemp("copy") / "project"
    shutil.copytree(folder, copied)
    for file in copied.glob("artifacts/**/*.*"):
        file.chmod(0o600)
    assert snakemake(copied, "-n") == set()
    replace_by_an_older_file(copied / "artifacts/toy/checkpoint.txt")
    assert snakemake(copied, "-n") == {"fused"}
