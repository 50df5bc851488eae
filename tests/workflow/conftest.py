"""A copy of the project in a folder of its own, in which the real Snakefile runs on a small network."""

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fixtures.connections import as_at_home, can_trace, traced

PROJECT = Path(__file__).resolve().parents[2]
QUICK = "{min_runs: 10, max_seconds: 0.1, warmup_seconds: 0, launches: [1, 1]}"
CONFIG = """
data: {name: digits, image_size: 32}
models: {toy: }
training: {epochs: 3}
quantize: {calibration_images: 128}
targets:
  tensorrt:
    options: {compute_capabilities: ["8.6"]}
    bench: QUICK
  coreml: {bench: QUICK}
  executorch: {bench: QUICK}
""".replace("QUICK", QUICK)


@dataclass(frozen=True)
class Run:
    """What one call of snakemake did.

    Attributes:
        code: its exit code.
        output: what it printed.
        jobs: how often each stage was started; a stage of a target is `stage:target`.
    """

    code: int
    output: str
    jobs: Counter


class Clone:
    """A copy of the project, with a store."""

    def __init__(self, folder: Path, store: Path):
        self.folder, self.store = folder, store

    @property
    def environment(self) -> dict[str, str]:
        return {**as_at_home(), "REPNETS_STORE": str(self.store), "PYTHONPATH": str(self.folder)}

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "snakemake", "--printshellcmds", *(words or ("all",))]

    def snakemake(self, *words: str, connections: Path | None = None) -> Run:
        """Run snakemake here; returns what it did, whether or not it succeeded.

        Args:
            words: its arguments.
            connections: a log for all that it and its jobs connect to, if this machine can trace.
        """
        command = self.command(*words)
        if connections and can_trace():
            command = traced(connections, *command)
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        output = done.stdout + done.stderr
        jobs = Counter()
        for line in re.findall(r"python -m pipeline \w+ .*", output):
            stage = re.search(r"pipeline (\w+)", line)[1]
            target = re.search(r'"target":"([\w-]+)"', line) or re.search(r"targets/([\w-]+)/", line)
            jobs[f"{stage}:{target[1]}" if target and stage != "report" else stage] += 1
        return Run(done.returncode, output, jobs)

    def logs(self) -> dict[str, str]:
        return {str(log.relative_to(self.folder)): log.read_text() for log in self.folder.glob("logs/**/*.log")}

    def copy(self, folder: Path, store: Path | None = None) -> "Clone":
        """This clone with all that was built, dates included; the store is copied too unless one is given."""
        shutil.copytree(self.folder, folder / "clone", symlinks=True)
        if store is None:
            store = folder / "store"
            shutil.copytree(self.store, store)
        return Clone(folder / "clone", store)


def fresh_clone(
    folder: Path, store: Path, config: str = CONFIG, targets: tuple[str, ...] = ("tensorrt", "coreml", "executorch")
) -> Clone:
    """The project's own files, nothing built; of its targets those that are named, since int8 takes its time."""
    folder.mkdir(parents=True)
    for name in ("pipeline", "repnets", "workflows", "profiles"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for target in targets:
        (folder / "targets" / target).mkdir(parents=True)
        shutil.copy(PROJECT / "targets" / target / "target.yaml", folder / "targets" / target)
    shutil.copy(PROJECT / "Snakefile", folder)
    (folder / "config.yaml").write_text(config)
    return Clone(folder, store)


@pytest.fixture(scope="session")
def new_clone() -> Callable[..., Clone]:
    """`fresh_clone`, for a test with a configuration of its own."""
    return fresh_clone


@pytest.fixture(scope="session")
def built(made_once) -> Clone:
    """A clone in which everything was built once. Do not change it: take a copy."""

    def fill(folder: Path) -> None:
        made = fresh_clone(folder / "clone", folder / "store")
        run = made.snakemake("--cores", "2", "all", connections=folder / "connections.log")
        assert run.code == 0, run.output

    folder = made_once("built", fill)
    return Clone(folder / "clone", folder / "store")


@pytest.fixture(scope="session")
def packed(built, made_once) -> Clone:
    """A copy of it in which every bundle was packed. Do not change it: take a copy."""

    def fill(folder: Path) -> None:
        shutil.rmtree(folder / "store", ignore_errors=True)
        run = built.copy(folder).snakemake("--cores", "2", "bundles")
        assert run.code == 0, run.output

    folder = made_once("packed", fill)
    return Clone(folder / "clone", folder / "store")


@pytest.fixture
def clone(built, tmp_path) -> Clone:
    """A copy of the clone in which everything was built, and of its store."""
    return built.copy(tmp_path)
