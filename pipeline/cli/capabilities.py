"""What this machine can build, check and bench of the configured targets, and what is missing for the rest.

Nothing is built or imported to find out: the versions of distributions are read, programs are looked up on PATH, and
each backend says whether its runtime can be used.
"""

import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import backends
from pipeline.artifacts import store
from pipeline.artifacts.manifest import Unavailable
from pipeline.backends.base import Can
from pipeline.backends.tensorrt import engines
from pipeline.cli import requirements
from pipeline.cli.requirements import Found
from pipeline.config.project import HELD, Config
from pipeline.config.targets import Target
from pipeline.devices import facts
from pipeline.devices.facts import Inventory

_ROOM_GIB = 2


@dataclass(frozen=True)
class Verdict:
    """What this machine can do with a target."""

    target: str
    build: Can
    check: Can
    bench: Can


@dataclass(frozen=True)
class Host:
    """This machine, as far as it matters.

    Attributes:
        inventory: what it says of itself; the room is that where results are kept.
        python: version of the Python that this runs on.
        gpu: NVIDIA's compute capability, as the driver says it; None without a GPU.
        store: where results are kept.
        found: all that was looked for.
        verdicts: by target, in the order of their names.
    """

    inventory: Inventory
    python: str
    gpu: str | None
    store: str
    found: tuple[Found, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def unmet(self) -> list[Verdict]:
        """Targets that cannot be built or not be checked here."""
        return [one for one in self.verdicts if not (one.build.yes and one.check.yes)]


def examine(config: Config, targets: Sequence[str]) -> Host:
    """Look at this machine.

    Args:
        config: what is to be built.
        targets: names of those in question.
    """
    found = tuple(requirements.find(requirements.everything()))
    room = store.root()
    me = facts.inventory(facts.here(), str(room), sys.executable)
    inputs = (*_inputs(config), *_room(me.free_gib))
    return Host(
        inventory=me,
        python=platform.python_version(),
        gpu=engines.compute_capability(),
        store=_from_home(room),
        found=found,
        verdicts=tuple(_verdict(config.targets[name], found, inputs) for name in targets),
    )


def needed_by(one: Found, targets: Sequence[Target]) -> list[str]:
    """Names of the targets that something is needed for."""
    wanted = set(one.requirement.kinds)
    return [target.name for target in targets if not wanted or wanted & _kinds(target)]


def _kinds(target: Target) -> set[str]:
    """By what a requirement names the targets that it is for. int8 is among what `precision: auto` tries."""
    return {target.backend, "int8" if target.precision == "auto" else target.precision}


def _verdict(target: Target, found: Sequence[Found], inputs: Sequence[Unavailable]) -> Verdict:
    build = (*inputs, *_lacking(target, found, "all"), *_lacking(target, found, "build"))
    check = _lacking(target, found, "check")
    can_check = not build and not check
    backend = backends.load(target.backend)
    return Verdict(
        target.name,
        build=Can(not build, _built(target, found) if not build else "no", build),
        check=Can(can_check, f"by {backend.checked_by}" if can_check else "no", check),
        bench=_bench(target),
    )


def _lacking(target: Target, found: Sequence[Found], work: str) -> tuple[Unavailable, ...]:
    needed = [one for one in found if needed_by(one, [target]) and one.requirement.work == work]
    return tuple(
        Unavailable(f"{one.requirement.name} {lack(one)}: {one.requirement.why}.", one.remedy)
        for one in needed
        if not one.is_met
    )


def lack(one: Found) -> str:
    """In words, what is wrong with something that is not met."""
    return "is not installed" if one.version is None else f"is {one.version}, and {one.wanted} is needed"


def _built(target: Target, found: Sequence[Found]) -> str:
    return backends.load(target.backend).built_here({one.requirement.name for one in found if one.is_met})


def _bench(target: Target) -> Can:
    """By the backend's own word; a target with a `device:` is benched there."""
    if target.device != "local":
        why = Unavailable(f"bench runs on {target.device}.", f"Ask it what it has: repnets doctor {target.device}")
        return Can(False, f"on {target.device}", (why,))
    missing = backends.load(target.backend).unavailable()
    if missing is None:
        return Can(True, f"by {backends.load(target.backend).title}")
    return Can(False, "not here", (missing,))


def _inputs(config: Config) -> tuple[Unavailable, ...]:
    """What the configuration names and is not there."""
    missing = []
    if config.data.name in HELD and not Path(config.data.root).is_dir():
        held = HELD[config.data.name]
        missing.append(Unavailable(f"There is no folder {config.data.root}.", "Set `data.root` in config.yaml to the "
                       f"folder that holds {held}."))  # fmt: skip
    for name, model in config.models.items():
        if model.checkpoint and not Path(model.checkpoint).is_file():
            missing.append(Unavailable(f"There is no file {model.checkpoint}.", f"Set `models.{name}.checkpoint` in "
                           "config.yaml to a file, or leave it out, and the network is trained."))  # fmt: skip
    return tuple(missing)


def _room(free_gib: float | None) -> tuple[Unavailable, ...]:
    if free_gib is None or free_gib >= _ROOM_GIB:
        return ()
    return (
        Unavailable(
            f"{free_gib} GiB are left on the disk where results are kept.",
            f"Free {_ROOM_GIB} GiB, or point REPNETS_STORE at a folder with room.",
        ),
    )


def _from_home(path: Path) -> str:
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path)


def can_run(target: Target, device: Inventory) -> Can:
    """Whether a device can run a target's file: its bench, and the self-test of its bundle."""
    return backends.load(target.backend).can_run_on(device, requirements.ranges())


def can_install(device: Inventory) -> Can:
    """Whether `repnets ship` finds there what it works with."""
    has_python = "python3" in device.tools
    needs = (
        ("tar", "unpacks the bundle", "tar" in device.tools, "tar"),
        ("sha256sum", "verifies each file", {"sha256sum", "shasum"} & set(device.tools), "coreutils"),
        ("flock", "keeps two ships apart", has_python or "flock" in device.tools, "util-linux, or Python 3"),
        ("mv -T", "replaces the link `current` in one step", has_python or device.switch, "coreutils, or Python 3"),
    )
    missing = tuple(
        Unavailable(f"There is no {name}, which {why}.", f"Install {package} there; BusyBox has it too.")
        for name, why, there, package in needs
        if not there
    )
    return Can(not missing, "yes" if not missing else "no", missing)
