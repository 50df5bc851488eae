"""The wheel alone, in an environment of its own and a folder of the user's, without git, make or a compiler.

Only the packages that repnets needs are taken from the environment of the tests.
"""

import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import snakemake
from PIL import Image

from tests.fixtures.connections import as_at_home

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).resolve().parents[2]
WANTED = "targets/executorch/toy/check.json"
CHANGES = """
training: {epochs: 2}
targets: {executorch: {baseline: none}}
"""
ABSENT = re.compile(r"git.*|.*make|(.*-)?(cc|c\+\+|gcc|g\+\+|clang|ld)([-+.\d].*)?|repnets|snakemake|python.*|pip.*")
DIGESTS = """
import json
from pipeline import backends
from pipeline.artifacts import digests
from pipeline.models import networks
from pipeline.stages import jobs
from pipeline.stages.command import STAGES
from repnets.networks import MODELS

names = backends.names()
found = {f"{stage} {name}": digests.code_digest(f"pipeline.stages.{stage}", backends.module_name(name))
         for stage in STAGES for name in names}
found |= {stage: digests.code_digest(f"pipeline.stages.{stage}") for stage in STAGES}
found |= {f"{arch} {folded}": digests.code_digest(*networks.code_modules(arch, folded))
          for arch in MODELS for folded in (False, True)}
found |= {f"texts of {name}": jobs.shipped_texts(name) for name in ("coreml", "executorch", "tensorrt")}
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Installed:
    """An environment in which the wheel was installed.

    Attributes:
        folder: holds the wheel, `environment/` and `bin/`, a PATH of programs.
    """

    folder: Path

    @property
    def wheel(self) -> Path:
        return next(self.folder.glob("*.whl"))

    @property
    def python(self) -> Path:
        return self.folder / "environment" / "bin" / "python"

    @property
    def package(self) -> Path:
        return next(self.folder.glob("environment/lib/*/site-packages/pipeline"))

    def run(self, folder: Path, *command: str | Path, store: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a program in a folder as a user does who has only this environment."""
        environment = {
            **as_at_home(),
            "PATH": str(self.folder / "bin"),
            "REPNETS_STORE": str(store or folder / "store"),
        }
        environment.pop("PYTHONPATH", None)
        return subprocess.run(list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True)

    def snakemake(self, folder: Path, *words: str, store: Path | None = None) -> subprocess.CompletedProcess[str]:
        return self.run(folder, self.python, "-m", "snakemake", *words, store=store)

    def init(self, folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return self.run(folder.parent, self.python.with_name("repnets"), "init", folder.name, *words)


@pytest.fixture(scope="session")
def installed(made_once) -> Installed:
    """The wheel of this tree, installed once. Do not change it."""

    def fill(folder: Path) -> None:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(PROJECT)]
        subprocess.run([*pip, *build], check=True)
        made = Installed(folder)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "environment")], check=True)
        subprocess.run(
            [*pip, "--python", str(made.python), "install", "--quiet", "--no-deps", "--no-index", str(made.wheel)],
            check=True,
        )
        # a path in a .pth is searched, but an editable install that lies there is not
        heavy = Path(snakemake.__file__).parents[1]
        (made.package.parent / "needed.pth").write_text(f"{heavy}\n")
        (folder / "bin").mkdir()
        for place in ("/bin", "/usr/bin", "/usr/local/bin"):
            for program in Path(place).iterdir() if Path(place).is_dir() else ():
                if not ABSENT.fullmatch(program.name) and not (folder / "bin" / program.name).is_symlink():
                    (folder / "bin" / program.name).symlink_to(program)

    return Installed(made_once("installed", fill))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_wheel_holds_the_packages_and_the_workflow_and_nothing_else(installed):
    packages = [path for name in ("pipeline", "repnets") for path in PROJECT.glob(f"{name}/**/*") if path.is_file()]
    wanted = {path.relative_to(PROJECT).as_posix(): path for path in packages if "__pycache__" not in path.parts}
    shipped = [PROJECT / "Snakefile", PROJECT / "profiles/default/config.yaml"]
    shipped += [*PROJECT.glob("workflows/*.smk"), *PROJECT.glob("targets/*/target.yaml")]
    wanted |= {f"pipeline/project/{path.relative_to(PROJECT).as_posix()}": path for path in shipped}
    with zipfile.ZipFile(installed.wheel) as wheel:
        found = {name: wheel.read(name) for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == {name: path.read_bytes() for name, path in wanted.items()}


def test_it_is_the_wheel_that_runs(installed, tmp_path):
    script = "import pipeline, repnets; print(pipeline.__file__, repnets.__file__, sep='\\n')"
    done = installed.run(tmp_path, installed.python, "-c", script)
    site = installed.package.parent
    assert done.stdout.splitlines() == [str(site / name / "__init__.py") for name in ("pipeline", "repnets")]
    for program in ("git", "make", "cc", "gcc"):
        assert installed.run(tmp_path, "sh", "-c", f"command -v {program}").returncode != 0
    places = installed.run(tmp_path, installed.python, "-c", "import sys; print(*sys.path, sep='\\n')").stdout
    assert str(PROJECT) not in places.splitlines()


def test_the_store_keys_are_those_of_a_clone(installed, tmp_path):
    done = installed.run(tmp_path, installed.python, "-c", DIGESTS)
    assert done.returncode == 0, done.stderr
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    clone = subprocess.run(
        [sys.executable, "-c", DIGESTS], cwd=PROJECT, env=environment, capture_output=True, text=True, check=True
    )
    assert len(json.loads(clone.stdout)) > 100
    assert json.loads(done.stdout) == json.loads(clone.stdout)


def jobs_of(output: str) -> list[str]:
    return re.findall(r"^\S+ +\d+$", output, re.MULTILINE)


def test_a_new_project_has_the_jobs_of_a_clone(installed, new_clone, tmp_path):
    folder = tmp_path / "Mein Projekt ü"
    made = installed.init(folder)
    assert made.returncode == 0, made.stderr
    there = installed.snakemake(folder, "--dry-run", "all")
    assert there.returncode == 0, there.stderr
    names = tuple(path.parent.name for path in PROJECT.glob("targets/*/target.yaml"))
    clone = new_clone(tmp_path / "clone", tmp_path / "store", (PROJECT / "config.yaml").read_text(), names)
    here = clone.snakemake("--dry-run", "all")
    assert here.code == 0, here.output
    assert len(jobs_of(there.stdout)) > 25
    assert jobs_of(there.stdout) == jobs_of(here.output)


def test_a_network_is_trained_on_pictures_of_ones_own_and_exported(installed, new_clone, tmp_path):
    """Folder names with spaces and umlauts; a gray picture, one with transparency, and one that is broken."""
    data, folder = tmp_path / "Bilder für Schrauben", tmp_path / "Mein Projekt ü"
    random = np.random.default_rng(0)
    for number, kind in enumerate(("gut", "Kratzer groß")):
        (data / kind).mkdir(parents=True)
        for one in range(40):
            pixels = random.integers(0, 80, (36, 40, 3), dtype=np.uint8)
            pixels[..., 2 * number] += 150
            Image.fromarray(pixels).save(data / kind / f"Bild {one}.png")
        Image.open(data / kind / "Bild 1.png").convert("L").save(data / kind / "grau.png")
        Image.open(data / kind / "Bild 2.png").convert("RGBA").save(data / kind / "alpha.png")
    broken = data / "gut" / "kaputt.jpg"
    broken.write_text("no picture")
    package = contents(installed.package)

    made = installed.init(folder, "--data", data, "--arch", "toy", "--target", "executorch")
    assert (made.returncode, made.stderr) == (0, "")
    assert "85 pictures in 2 classes (Kratzer groß, gut); RGB" in made.stdout
    assert "kaputt.jpg cannot be decoded" in made.stdout
    config = (folder / "config.yaml").read_text().partition("training:")[0] + CHANGES
    (folder / "config.yaml").write_text(config)

    stopped = installed.snakemake(folder, "artifacts/split.json", store=tmp_path / "store")
    assert stopped.returncode == 1
    assert "kaputt.jpg cannot be decoded" in stopped.stdout + stopped.stderr
    broken.unlink()
    built = installed.snakemake(folder, "--cores", "2", WANTED, store=tmp_path / "store")
    assert built.returncode == 0, built.stdout + built.stderr
    check = json.loads((folder / WANTED).read_text())
    assert check["status"] == "ok"
    assert (folder / WANTED).with_name("fused.pte").stat().st_size > 100_000

    assert contents(installed.package) == package
    assert installed.init(folder).returncode == 2

    clone = new_clone(tmp_path / "clone", tmp_path / "store", config, ("executorch",))
    again = clone.snakemake("--cores", "2", WANTED)
    assert again.code == 0, again.output
    stages = ("split", "train", "reparameterize", "verify", "export", "check")
    logs = "".join(clone.logs().values())
    assert [stage for stage in stages if f"{stage}: from the store" not in logs] == []
