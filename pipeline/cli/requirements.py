"""What the pipeline needs, what for, and the command that brings it. Nothing is imported to see whether it is there.

Which versions will do stands in pyproject.toml and nowhere else.
"""

import re
import shutil
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata

from pipeline.artifacts.manifest import version_numbers, versions
from pipeline.artifacts.source_files import PROJECT


@dataclass(frozen=True)
class Requirement:
    """Something that has to be installed for some of the work.

    Attributes:
        name: of the Python distribution, or of the program.
        why: what it does here, a few words.
        work: what cannot be done without it: ``all``; ``build``, and then nothing is checked either; ``check``;
            ``engine``; ``device`` and ``sign``, which no target is built with.
        backends: whose targets need it, ``int8`` for those of that precision; empty: all.
        is_program: a program on PATH, and no distribution.
        linux, mac: the command that brings a program.
    """

    name: str
    why: str
    work: str = "all"
    backends: tuple[str, ...] = ()
    is_program: bool = False
    linux: str = ""
    mac: str = ""


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
    Requirement("torchao", "int8 programs (comes with executorch)", "build", ("int8",)),
    Requirement("executorch", "writes and runs .pte; quantizes to int8", "build", ("executorch", "int8")),
    Requirement("onnx", "ONNX files, which TensorRT builds from", "build", ("tensorrt",)),
    Requirement("onnxscript", "torch's ONNX exporter", "build", ("tensorrt",)),
    Requirement("onnxruntime", "runs ONNX files in check, and as the reference", "check", ("tensorrt",)),
    Requirement("coremltools", "writes ML programs; on a Mac runs them", "build", ("coreml",)),
)  # fmt: skip
"""Distributions without which a target is not built or not checked."""

ENGINES = (
    Requirement("tensorrt", "engines for this machine's GPU", "engine", ("tensorrt",)),
    Requirement("tensorrt-rtx-cu13", "engines for RTX GPUs, built without one", "engine", ("tensorrt",)),
    Requirement(
        "trtexec", "builds and times engines where NVIDIA's TensorRT is (a Jetson: JetPack)", "engine",
        ("tensorrt",), True, "install JetPack's or NVIDIA's TensorRT",
    ),
)  # fmt: skip
"""Any one of them builds engines beside the ONNX file."""

PROGRAMS = (
    Requirement("ssh", "devices ssh://user@host", "device", (), True, _SSH),
    Requirement("ssh-keygen", "signatures of bundles", "sign", (), True, _SSH),
    Requirement("adb", "devices adb:SERIAL (Android)", "device", (), True, _ADB[0], _ADB[1]),
)
"""What reaches devices; nothing is built with it."""

PLACES = ("/usr/src/tensorrt/bin",)
"""Where programs may be that are not on PATH: JetPack's trtexec."""

_NAME = re.compile(r"[A-Za-z0-9._-]+")


def find(requirements: Iterable[Requirement]) -> list[Found]:
    """Look for requirements on this machine."""
    return [_program(one) if one.is_program else _package(one) for one in requirements]


def _package(one: Requirement) -> Found:
    version, wanted = versions(one.name)[one.name], ranges().get(_plain(one.name), "")
    is_met = version is not None and is_within(version, wanted)
    return Found(one, version, wanted, is_met, "" if is_met else _pip(one.name, wanted))


def _program(one: Requirement) -> Found:
    found = shutil.which(one.name) or shutil.which(one.name, path=":".join(PLACES))
    remedy = one.mac if sys.platform == "darwin" and one.mac else one.linux
    return Found(one, found, "", found is not None, "" if found else remedy)


def _pip(name: str, wanted: str) -> str:
    if name == "tensorrt":
        return 'pip install "repnets[tensorrt]"'
    if name == "torchao":
        return _pip("executorch", ranges().get("executorch", ""))
    return f'pip install "{name}{wanted}"' if wanted else f"pip install {name}"


def is_within(version: str, wanted: str) -> bool:
    """Whether a version is in a range of ``>=`` and ``<``, which is all that pyproject.toml declares."""
    bounds = [re.match(r"(>=|<)\s*([\d.]+)$", bound.strip()) for bound in wanted.split(",") if bound.strip()]
    return all(
        (version_numbers(version) >= version_numbers(bound[2])) is (bound[1] == ">=") for bound in bounds if bound
    )


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
