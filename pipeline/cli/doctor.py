"""`repnets doctor`: what this machine and the named devices can build, check and bench, and what brings the rest."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline import backends, devices
from pipeline.artifacts.manifest import Unavailable, write_json
from pipeline.backends.base import Backend
from pipeline.cli import capabilities as examined
from pipeline.cli.capabilities import Host
from pipeline.cli.requirements import Found
from pipeline.config import yaml_file
from pipeline.config.targets import Target
from pipeline.deploy import installation
from pipeline.devices import Device, facts
from pipeline.devices.facts import Inventory
from pipeline.errors import DeviceError, InputError, StageError, nearest, shown
from pipeline.models import resolve
from pipeline.report.text import aligned, wrapped

HELP = """\
Examine this machine and the named devices, and say for each target what can be built, checked and benchmarked, what is
missing, why it is needed, and the command that installs it. Nothing is built, installed or changed.

DEVICE is the machine that is to run the files:
  ssh://user@host:port   a Jetson, a Raspberry Pi, a Mac, over the system's own ssh, with your keys and ~/.ssh/config
  adb:SERIAL             an Android phone or tablet, over the system's own adb; `adb devices` lists them
One shell command is run on each device; nothing is written there.

build and check need no device: a file whose runtime is not here is checked with another runtime, see docs/proof.md.
bench needs the target's own runtime, here or on a device.

Exit code 0: every target in question can be built and checked here, and each device answered. 1: not so. 2: the
configuration or an option cannot be used.

examples:
  repnets doctor
  repnets doctor --target tensorrt ssh://anna@jetson.local
  repnets doctor adb:0123456789ABCDEF --json doctor.json
"""

_WITHOUT = {
    "all": "no build and no check of {targets}",
    "build": "no build and no check of {targets}",
    "check": "no check of {targets}",
    "engine": "engines are built by another of the three, or on the device",
    "device": "no such device can be reached",
    "sign": "bundles are not signed, and no signature is verified",
}


def doctor(
    names: Sequence[str] = (),
    *,
    targets: Sequence[str] | None = None,
    python: str = "python3",
    settings: Path = Path("config.yaml"),
    document: Path | None = None,
) -> None:
    """Print what this machine and some devices can do for the configured targets.

    Args:
        names: devices, as `devices.parse` reads them.
        targets: those in question; default: all that are configured.
        python: the Python on the devices.
        settings: the config.yaml with the targets beside it.
        document: where to write the same as JSON.

    Raises:
        InputError: the configuration cannot be used, or has no such target, or a device is not named properly.
        StageError: a target cannot be built or checked here.
        DeviceError: a device did not answer.
    """
    configured = resolve.load(yaml_file.read(settings), backends.rules(), settings.parent)
    for name in targets or ():
        if name not in configured.targets:
            raise InputError(f"there is no target `{name}`{nearest(name, list(configured.targets))}")
    chosen = [configured.targets[name] for name in targets or configured.targets]
    parsed = [devices.parse(name) for name in names]
    host = examined.examine(configured, [target.name for target in chosen])
    print(_host(host, chosen))
    answers = {device.name: _ask(device, python) for device in parsed}
    for name, answer in answers.items():
        print("\n".join(map(shown, f"\n{_device(name, answer, chosen)}".split("\n"))))
    for name in sorted({target.backend for target in chosen}):
        if backends.load(name).runner_help:
            print(f"\n{_runner_help(backends.load(name), host)}")
    if document:
        write_json(document, _document(host, chosen, answers))
    _conclude(host, answers)


def _ask(device: Device, python: str) -> Inventory | DeviceError:
    try:
        return facts.inventory(device, installation.home(device), python)
    except DeviceError as error:
        return error


def _conclude(host: Host, answers: Mapping[str, Inventory | DeviceError]) -> None:
    silent = [answer for answer in answers.values() if isinstance(answer, DeviceError)]
    if host.unmet:
        names = ", ".join(one.target for one in host.unmet)
        raise StageError(f"{names} cannot be built and checked here; what is missing, and how to get it, is above.")
    print("\nevery target in question can be built and checked here")
    if silent:
        raise silent[0]


def _host(host: Host, targets: Sequence[Target]) -> str:
    about = aligned(_about(host.inventory, f"Python {host.python}", f"where results are kept: {host.store}"))
    gpu = f"compute capability {host.gpu}" if host.gpu else "none with a working driver"
    needed = [_row(one, targets) for one in host.found if _needed(one, targets)]
    rows = [("target", "build", "check", "bench")]
    rows += [(one.target, one.build.how, one.check.how, one.bench.how) for one in host.verdicts]
    parts = ["this machine", _indented(f"{about}\nnvidia   {gpu}"), "", _indented(aligned(needed))]
    if lacking := [one for one in host.found if _needed(one, targets) and not one.is_met]:
        rows_of_lacking = [("", "command", "without it"), *(_lack(one, targets) for one in lacking)]
        parts += ["", "to get what is missing", _indented(aligned(rows_of_lacking))]
        if any(one.requirement.work == "all" for one in lacking):
            parts += ["  All Python packages at once, in the project's folder: pip install --editable ."]
    parts += ["", "what can be done here", _indented(aligned(rows))]
    for what, why in _missing(host):
        parts += ["", f"{what}", _why(why)]
    return "\n".join(parts)


def _runner_help(backend: Backend, host: Host) -> str:
    """How to build a runner: of the version that the files are made with, or the oldest that will do."""
    found = next(one for one in host.found if one.requirement.name == backend.run_by[0])
    return backend.runner_help.format(version=found.version or f"{found.wanted.partition(',')[0].lstrip('>=')}.0")


def _needed(one: Found, targets: Sequence[Target]) -> bool:
    return bool(examined.needed_by(one, targets))


def _row(one: Found, targets: Sequence[Target]) -> tuple[str, ...]:
    version = "yes" if one.version and one.requirement.is_program else one.version or "missing"
    wanted = "" if one.is_met or one.version is None else f"; {one.wanted} is needed"
    return (one.requirement.name, f"{version}{wanted}", one.requirement.why)


def _lack(one: Found, targets: Sequence[Target]) -> tuple[str, ...]:
    """What is missing, the command, and what cannot be done without it."""
    named = examined.needed_by(one, targets)
    whose = "any target" if len(named) == len(targets) else ", ".join(named)
    return (one.requirement.name, one.remedy, _WITHOUT[one.requirement.work].format(targets=whose))


def _missing(host: Host) -> list[tuple[str, Unavailable]]:
    """Other obstacles, each reason once, with the names of all targets that it concerns."""
    listed = {one.remedy for one in host.found if not one.is_met}
    found: dict[tuple[str, Unavailable], list[str]] = {}
    for verdict in host.verdicts:
        for work in ("build", "check", "bench"):
            for why in getattr(verdict, work).missing:
                if why.remedy in listed:
                    continue
                found.setdefault((work, why), []).append(verdict.target)
    return [(f"no {work} here of {', '.join(targets)}", why) for (work, why), targets in found.items()]


def _device(name: str, answer: Inventory | DeviceError, targets: Sequence[Target]) -> str:
    if isinstance(answer, DeviceError):
        return f"{name}\n{_indented(f'error    {answer}')}"
    python = f"Python {answer.python}" if answer.python else "no Python"
    about = _about(answer, python, "where bundles go")
    runtimes = ", ".join(f"{package} {version}" for package, version in answer.packages.items())
    about.append(
        ("runtimes", ", ".join(filter(None, (runtimes, answer.trtexec and f"trtexec {answer.trtexec}"))) or "none")
    )
    about.append(("compiler", f"g++ {answer.gcc}" if answer.gcc else "no g++"))
    install = examined.can_install(answer)
    about.append(("ship", "it has the tools" if install.yes else "no; see below"))
    about.append(("installed", ", ".join(f"{one} {digest}" for one, digest in answer.installed) or "nothing"))
    abilities = {target.name: examined.can_run(target, answer) for target in targets}
    rows = [("target", "bench and self-test"), *((one, can.how) for one, can in abilities.items())]
    parts = [name, _indented(aligned(about)), "", _indented(aligned(rows))]
    whys: dict[Unavailable, list[str]] = {}
    for one, can in (("ship", install), *abilities.items()):
        for why in can.missing:
            whys.setdefault(why, []).append(one)
    for why, concerned in whys.items():
        parts += ["", f"not there: {', '.join(concerned)}", _why(why)]
    return "\n".join(parts)


def _about(found: Inventory, python: str, place: str) -> list[tuple[str, str]]:
    about = found.machine
    system = filter(None, (about.distribution, f"{about.system} {about.release}", about.architecture, python))
    cores = f"{about.cores} core{'s' * (about.cores != 1)}" if about.cores else None
    memory = f"{_memory_gib(found)} GiB of memory" if about.memory_bytes else None
    free = f"{found.free_gib} GiB free" if found.free_gib is not None else "free space unknown"
    return [
        ("system", ", ".join(system)),
        ("machine", ", ".join(filter(None, (about.model, about.cpu, cores, memory)))),
        ("disk", f"{free}, {place}"),
    ]


def _why(why: Unavailable) -> str:
    lines = (("why", why.reason), ("do", why.remedy))
    return "\n".join(wrapped(text, " " * 7, first=f"  {word:5}", width=118) for word, text in lines)


def _indented(text: str) -> str:
    return textwrap.indent(text, "  ")


def _document(host: Host, targets: Iterable[Target], answers: Mapping[str, Inventory | DeviceError]) -> dict[str, Any]:
    return {
        "met": not host.unmet,
        "host": {**_plain(host.inventory), "python": host.python, "gpu": host.gpu, "store": host.store},
        "requirements": [
            {
                "name": one.requirement.name,
                "version": one.version,
                "wanted": one.wanted,
                "met": one.is_met,
                "why": one.requirement.why,
                "remedy": one.remedy,
            }
            for one in host.found
        ],
        "targets": {
            one.target: {work: asdict(getattr(one, work)) for work in ("build", "check", "bench")}
            for one in host.verdicts
        },
        "devices": {name: _answer(answer, targets) for name, answer in answers.items()},
    }


def _answer(answer: Inventory | DeviceError, targets: Iterable[Target]) -> dict[str, Any]:
    if isinstance(answer, DeviceError):
        return {"error": str(answer)}
    can = {target.name: asdict(examined.can_run(target, answer)) for target in targets}
    return {**_plain(answer), "ship": asdict(examined.can_install(answer)), "targets": can}


def _plain(found: Inventory) -> dict[str, Any]:
    about = {**vars(found.machine), "memory_gib": _memory_gib(found), **vars(found)}
    del about["machine"]
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in about.items()}


def _memory_gib(found: Inventory) -> float | None:
    size = found.machine.memory_bytes
    return None if size is None else round(size / 2**30, 1)
