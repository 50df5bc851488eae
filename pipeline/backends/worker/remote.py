"""Worker processes on a device. All that they need is copied to a temporary folder there, which is removed at the end.

    code/       the few modules of this project that the process imports, if the device's Python runs the file
    files/      the exported files
    images.npy  the input

A device whose Python has no runtime runs a runner instead, a program that answers the same requests
(`devices/runner.cpp`).
"""

import ast
import json
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import IO

from pipeline import temporary
from pipeline.artifacts import source_files
from pipeline.artifacts.manifest import version_numbers
from pipeline.backends.worker import server
from pipeline.devices import Device, transfer
from pipeline.devices.shell import last_line
from pipeline.errors import DeviceError, quoted

OLDEST_PYTHON = "3.10"
_VERSION = re.compile(r"\d{1,9}(\.\d{1,9})*[\w.+-]{0,60}")
_FACTS = """\
import json, platform, sys
from importlib import metadata
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        found[name] = None
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Remote:
    """A device with the copied files.

    Attributes:
        device: the device.
        place: its temporary folder.
        names: path on the device of each exported file.
        command: argv of the process, to which the number of threads and the folder are appended.
        versions: of the software there: ``python`` and distributions, or the runner's.
        used_seconds: CPU time of each process that has ended.
    """

    device: Device
    place: str
    names: Mapping[Path, str]
    command: Sequence[str]
    versions: Mapping[str, str | None]
    used_seconds: list[float] = field(default_factory=list)
    _given: list[bytes] = field(default_factory=list)

    def start(self, threads: int, environment: Mapping[str, str], stderr: IO[bytes]) -> Popen[str]:
        """Start a process; see `Device.start`."""
        settings = {**environment, "TMPDIR": self.place, "PYTHONPATH": f"{self.place}/code"}
        assigned = [f"{name}={value}" for name, value in settings.items()]
        return self.device.start(["env", *assigned, *self.command, str(threads), self.place], stderr=stderr)

    def give(self, image: Path) -> None:
        """Copy an image to where the processes read it, unless it is there already."""
        content = image.read_bytes()
        if self._given != [content]:
            transfer.push(self.device, image, f"{self.place}/images.npy")
            self._given[:] = [content]


@contextmanager
def by_python(
    device: Device,
    python: str,
    module: str,
    packages: Sequence[str],
    made_by: Mapping[str, str | None],
    files: Sequence[Path],
) -> Iterator[Remote]:
    """Copy files to a device whose own Python runs them.

    Args:
        device: the device.
        python: its Python.
        module: of `pipeline.backends`, with a `RUNTIME`; it imports little.
        packages: distributions that it needs there.
        made_by: versions of the packages that exported the files; an older runtime on the device is refused.
        files: exported files.

    Raises:
        DeviceError: the device cannot be reached or is full, or has no such Python or runtime, or one too old.
    """
    versions = python_versions(device, python, packages)
    _check_versions(device, python, versions, packages, made_by)
    with device.scratch() as place, temporary.folder() as folder:
        for name in closure(server.__name__, module):
            target = Path(folder, "code", source_files.file_of(name).relative_to(source_files.PROJECT))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source_files.file_of(name), target)
        names = _lay_out(files, Path(folder))
        transfer.push(device, Path(folder), place)
        command = (python, "-m", server.__name__, module)
        there = {file: f"{place}/{name}" for file, name in names.items()}
        yield Remote(device, place, there, command, versions)


@contextmanager
def by_runner(device: Device, runner: str, files: Sequence[Path]) -> Iterator[Remote]:
    """Copy files to a device that has a runner.

    Args:
        device: the device.
        runner: path of the runner there.
        files: exported files.

    Raises:
        DeviceError: the device cannot be reached or is full; the runner is not there, or is of another architecture.
    """
    versions = runner_versions(device, runner)
    with device.scratch() as place, temporary.folder() as folder:
        names = _lay_out(files, Path(folder))
        transfer.push(device, Path(folder), place)
        there = {file: f"{place}/{name}" for file, name in names.items()}
        yield Remote(device, place, there, (runner,), versions)


def closure(*modules: str) -> list[str]:
    """These modules, all of this project that they import anywhere, and the packages that they lie in; sorted."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module in found or not source_files.is_ours(module):
            continue
        file = source_files.file_of(module)
        if file is None:  # a name taken from a module
            continue
        found.add(module)
        waiting += [module.rpartition(".")[0]]
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                waiting += [name.name for name in node.names]
            elif isinstance(node, ast.ImportFrom):
                waiting += [node.module, *(f"{node.module}.{name.name}" for name in node.names)]
    return sorted(found)


def _lay_out(files: Sequence[Path], folder: Path) -> dict[Path, str]:
    (folder / "files").mkdir()
    for number, file in enumerate(files):
        shutil.copyfile(file, folder / "files" / f"{number}-{file.name}")
    return {file: f"files/{number}-{file.name}" for number, file in enumerate(files)}


def python_versions(device: Device, python: str, packages: Sequence[str]) -> dict[str, str | None]:
    """Versions of ``python`` and of distributions in a device's Python; None for those that are not installed.

    Raises:
        DeviceError: the device cannot be reached; it has no such Python, or one that cannot list its packages.
    """
    done = device.run([python, "-c", _FACTS, *packages])
    if done.returncode in (126, 127):
        raise DeviceError(
            f"{device.name} has no program `{python}`, or cannot run it: {last_line(done.stderr)}. Set "
            f"`device_python:` in target.yaml to the Python there that has {' and '.join(packages)}, or `runner:` to a "
            "runner."
        )
    if done.returncode:
        raise DeviceError(
            f"`{python}` on {device.name} cannot say which packages it has: {last_line(done.stderr)}. It may be too "
            f"old: Python {OLDEST_PYTHON} or later is needed. Set `device_python:` in target.yaml to such a one."
        )
    return _versions(device, done.stdout, packages)


def _versions(device: Device, printed: str, packages: Sequence[str]) -> dict[str, str | None]:
    """The versions that the script of `python_versions` prints."""
    last = (printed.splitlines() or [""])[-1]
    try:
        found = json.loads(last)
        versions = [found["python"], *(version for version in found.values() if version is not None)]
        if {"python", *packages} == set(found) and all(map(_VERSION.fullmatch, versions)):
            return found
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise device.no_answer(f"`{last[:60]}` where the versions of its Python and {', '.join(packages)} are asked for")


def runner_versions(device: Device, runner: str) -> dict[str, str | None]:
    """The version of ExecuTorch that a runner was built with.

    Raises:
        DeviceError: the device cannot be reached; the runner is not there, or is of another architecture.
    """
    done = device.run([runner, "--version"])
    if done.returncode or not done.stdout.startswith("repnets-runner "):
        raise _no_runner(device, runner, done.returncode, done.stdout + done.stderr)
    found = dict(word.partition("=")[::2] for word in done.stdout.split()[1:9])
    if not found or not all(_VERSION.fullmatch(version) for version in found.values()):
        raise _no_runner(device, runner, done.returncode, done.stdout)
    return found


def _check_versions(
    device: Device,
    python: str,
    found: Mapping[str, str | None],
    packages: Sequence[str],
    made_by: Mapping[str, str | None],
) -> None:
    if version_numbers(found["python"]) < version_numbers(OLDEST_PYTHON):
        raise DeviceError(
            f"`{python}` on {device.name} is Python {found['python']}, and {OLDEST_PYTHON} or later is "
            "needed. Set `device_python:` in target.yaml to such a one."
        )
    wanted = [f"{name}=={made_by[name]}" if made_by.get(name) else name for name in packages]
    install = f"{python} -m pip install {' '.join(map(shlex.quote, wanted))}"
    if missing := [name for name in packages if found[name] is None]:
        raise DeviceError(
            f"the Python `{python}` on {device.name} has no {' and no '.join(missing)}, which runs "
            f"these files. Install it there: {install}. Or set `device_python:` in target.yaml to a Python that has "
            f"it, or `runner:` to a runner."
        )
    for name in packages:
        if made_by.get(name) and version_numbers(found[name])[:2] < version_numbers(made_by[name])[:2]:
            raise DeviceError(
                f"{device.name} has {name} {found[name]}, which is older than the {made_by[name]} that the files were "
                f"made with, so it may not read them, or not alike. Install the same there: {install}"
            )


def _no_runner(device: Device, runner: str, returncode: int, said: str) -> DeviceError:
    machine = quoted(device.run(["uname", "-m"]).stdout)
    if "format" in said:  # Exec format error, cannot execute binary file
        why = f"is built for another architecture than the device's, {machine}"
    elif returncode == 127:
        why = "is not there"
    else:
        why = f"does not say that it is a runner (exit code {returncode}: {last_line(said)})"
    return DeviceError(
        f"the runner {runner} on {device.name} {why}. Build it there from pipeline/devices/runner.cpp as "
        "docs/devices.md tells, and name it in target.yaml: `runner: /path/on/the/device`."
    )
