"""What the pipeline needs, what for, and the command that brings it. Nothing is imported to see whether it is there.

Which versions will do stands in pyproject.toml and nowhere else.
"""

import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata

from pipeline import backends
from pipeline.artifacts.manifest import is_within, versions
from pipeline.artifacts.source_files import PROJECT
from pipeline.backends.base import Requirement
from pipeline.devices import local


@dataclass(frozen=True)
class Found:
    """A requirement, as it is on this machine.

    Attributes:
        version: installed; a program's path; None where it is missing.
        wanted: the versions that will do, e.g. ``>=2.14,<2.15``; empty: any.
        is_met: it is there, in such a version.
        remedy: the command that brings it; empty where it is met.
    """

    requirement: Requirement
    version: str | None
    wanted: str
    is_met: bool
    remedy: str


_SSH = "sudo apt-get install openssh-client"
_ADB = ("sudo apt-get install adb", "brew install android-platform-tools")

PACKAGES = (
    Requirement("torch", "networks: training, fusing, torch.export"),
    Requirement("torchvision", "data sets and image operations"),
    Requirement("numpy", "arrays"),
    Requirement("pillow", "reads images"),
    Requirement("pydantic", "reads config.yaml strictly"),
    Requirement("pyyaml", "reads YAML"),
    Requirement("safetensors", "weights on disk, without pickles"),
    Requirement("scikit-learn", "the digits data set; k-means of palettes"),
    Requirement("snakemake", "decides what is to be built"),
    Requirement("threadpoolctl", "threads of numerical libraries"),
    Requirement("tqdm", "progress bars"),
    Requirement("torchao", "int8 programs (comes with executorch)", "build", ("int8",), install="executorch"),
)
"""Distributions without which nothing is built, and what every backend's int8 program is made with."""

PROGRAMS = (
    Requirement("ssh", "devices ssh://user@host", "device", (), True, _SSH),
    Requirement("ssh-keygen", "signatures of bundles", "sign", (), True, _SSH),
    Requirement("adb", "devices adb:SERIAL (Android)", "device", (), True, _ADB[0], _ADB[1]),
)
"""What reaches devices; nothing is built with it."""


def everything() -> list[Requirement]:
    """All that is looked for: of the pipeline itself, of each backend, and what reaches devices."""
    own = [one for name in backends.names() for one in backends.load(name).requirements]
    return [*PACKAGES, *sorted(own, key=lambda one: one.work == "engine"), *PROGRAMS]


_NAME = re.compile(r"[A-Za-z0-9._-]+")


def find(requirements: Iterable[Requirement]) -> list[Found]:
    """Look for requirements on this machine."""
    return [_program(one) if one.is_program else _package(one) for one in requirements]


def _package(one: Requirement) -> Found:
    version, wanted = versions(one.name)[one.name], ranges().get(_plain(one.name), "")
    is_met = version is not None and is_within(version, wanted)
    return Found(one, version, wanted, is_met, "" if is_met else _pip(one.install or one.name))


def _program(one: Requirement) -> Found:
    found = local.find_program(one.name)
    remedy = one.mac if sys.platform == "darwin" and one.mac else one.linux
    return Found(one, found, "", found is not None, "" if found else remedy)


def _pip(name: str) -> str:
    wanted = ranges().get(_plain(name), "")
    return f'pip install "{name}{wanted}"' if wanted or "[" in name else f"pip install {name}"


@cache
def ranges() -> Mapping[str, str]:
    """Versions of each distribution that will do, by its plain name, as this project declares them."""
    return {_plain(_NAME.match(line)[0]): _range(line) for line in _declared()}


def _declared() -> list[str]:
    """Lines such as ``torch>=2.14,<2.15``: of pyproject.toml in a checkout, else of what was installed."""
    project = PROJECT / "pyproject.toml"
    if not project.exists():
        return metadata.requires("repnets") or []
    declared = tomllib.loads(project.read_text())["project"]
    return [
        *declared["dependencies"],
        *(line for extra in declared["optional-dependencies"].values() for line in extra),
    ]


def _range(line: str) -> str:
    return line.partition(";")[0].strip()[len(_NAME.match(line)[0]) :].strip()


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
