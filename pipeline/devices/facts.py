"""Facts about a machine, this one or a device: its hardware and system, its installed software, its present load.

They are parsed from the output of one shell script; see `facts_script`. None stands for what a machine does not report.
"""

import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from types import MappingProxyType
from typing import TypeVar

from pipeline.devices import Device, parse
from pipeline.devices.facts_script import MARK, SCRIPT
from pipeline.devices.shell import SHORT_SECONDS

_CPU = "/sys/devices/system/cpu"
_T = TypeVar("_T")
_POSSIBLE_C = (-40, 150)
_BRIEF, _TEXT = 200, 1_000_000  # characters of a name, and of one file or output


@dataclass(frozen=True)
class Machine:
    """Hardware and operating system.

    Attributes:
        system, release: from uname: ``Linux`` or ``Darwin``; the kernel's release.
        architecture: ``x86_64``, ``aarch64``, ``armv7l``; for Android its ABI, ``arm64-v8a``.
        model: the manufacturer's name of the board, phone or computer; never its network name.
        distribution: ``Ubuntu 22.04.4 LTS``, ``Android 14``, ``macOS 15.5``.
        operating_system: with the kernel, ``Jetson Linux 36.3.0, Linux 5.15.136-tegra aarch64``.
        cpu: the manufacturer's name.
        cores: that a process may use, by its affinity and the CPU quota of its control group.
        memory_bytes: total.
        gpus: NVIDIA GPUs with the driver's version, as the driver lists them.
        power_mode: the CPU's frequency governor, and a Jetson's power mode.
        jetson_clocks: whether the clocks of a Jetson's CPU are fixed at their highest; None on other machines.
    """

    system: str
    release: str
    architecture: str
    model: str | None
    distribution: str | None
    operating_system: str
    cpu: str | None
    cores: int | None
    memory_bytes: int | None
    gpus: tuple[str, ...]
    power_mode: str | None
    jetson_clocks: bool | None

    @property
    def is_android(self) -> bool:
        """Whether it is a phone or tablet, whose file system has another layout."""
        return bool(self.distribution and self.distribution.startswith("Android"))


@dataclass(frozen=True)
class Moment:
    """The load at one moment.

    Attributes:
        load_average: runnable tasks over the last minute.
        machine_seconds: CPU time of all processes since the machine started; None except on Linux.
        cpu_mhz: median frequency of the cores.
        temperature_c: by the name of each thermal zone; empty if the system has none.
    """

    load_average: float | None
    machine_seconds: float | None
    cpu_mhz: float | None
    temperature_c: Mapping[str, float]


@dataclass(frozen=True)
class Inventory:
    """A machine and its installed software.

    Attributes:
        machine: hardware and operating system.
        free_gib: on the disk where bundles are installed.
        tools: paths of programs, by name.
        python: version of the Python that was named, ``3.10.12``.
        packages: versions of the runtimes in that Python.
        trtexec, gcc: versions.
        switch: the program that replaces a symbolic link in one step; None if only Python can.
        installed: ``<model>-<target>`` and the first digits of the bundle's digest, for each current bundle.
    """

    machine: Machine
    free_gib: float | None
    tools: Mapping[str, str]
    python: str | None
    packages: Mapping[str, str]
    trtexec: str | None
    gcc: str | None
    switch: str | None
    installed: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Texts:
    """The output of the script, by path or command.

    Attributes:
        named: texts without zeros and line ends around them; missing files and commands are left out.
    """

    named: Mapping[str, str]

    @classmethod
    def of(cls, printed: str) -> "Texts":
        """Parse the output. Text before the first mark is not the script's: a banner, say."""
        parts = (part.partition("\n") for part in f"\n{printed}".split(f"\n{MARK} ")[1:])
        return cls({name: text[:_TEXT].strip("\0\n ") for name, _, text in parts})

    def text(self, name: str) -> str:
        """The text of a path or a command; empty if there is none."""
        return self.named.get(name, "")

    def first(self, *names: str) -> str | None:
        """The first text of these that is not empty."""
        return next(filter(None, map(self.text, names)), None)

    def matching(self, pattern: str) -> Iterator[tuple[str, str]]:
        """Path and text of all that a shell pattern matches, in the order of the paths."""
        return ((name, text) for name, text in sorted(self.named.items()) if fnmatch(name, pattern))

    def of_cores(self, name: str) -> list[str]:
        """The frequency setting of this name, of each core."""
        return [text for _, text in self.matching(f"{_CPU}/cpu[0-9]*/cpufreq/{name}")]

    def pairs(self, name: str) -> dict[str, str]:
        """Parse lines of ``key value``."""
        lines = (line[:_BRIEF].partition(" ") for line in self.text(name).splitlines())
        return {key: value for key, _, value in lines if key}


@cache
def here() -> Device:
    """This machine."""
    return parse("local")


def machine(device: Device) -> Machine:
    """Hardware and operating system of a machine.

    Raises:
        DeviceError: the device cannot be reached.
    """
    return _parsed(device, machine_of, "machine")


def moment(device: Device) -> Moment:
    """Load, frequencies and temperatures now.

    Raises:
        DeviceError: as `machine`.
    """
    return _parsed(device, moment_of, "moment")


def inventory(device: Device, home: str, python: str) -> Inventory:
    """A machine and its installed software.

    Args:
        device: this machine or another.
        home: folder where bundles are installed; it need not exist.
        python: the Python whose packages are listed.

    Raises:
        DeviceError: as `machine`.
    """
    return _parsed(device, inventory_of, "inventory", home, python)


def _parsed(device: Device, parse: Callable[[Texts], _T], *words: str) -> _T:
    printed = device.output(["sh", "-c", SCRIPT, "sh", *words], timeout=SHORT_SECONDS)
    try:
        return parse(Texts.of(printed))
    except (ValueError, OverflowError, ArithmeticError) as error:
        raise device.no_answer(f"where it is asked for its {words[0]}, {str(error)[:80]}") from None


def machine_of(printed: Texts) -> Machine:
    """See `Machine`."""
    memory = re.search(r"^MemTotal:\s*(\d+) kB", printed.text("/proc/meminfo"), re.MULTILINE)
    return Machine(
        system=_brief(printed.text("uname -s")) or "unknown",
        release=_brief(printed.text("uname -r")),
        architecture=_brief(printed.first("getprop ro.product.cpu.abi", "uname -m")) or "unknown",
        model=_brief(_model(printed)),
        distribution=_brief(_distribution(printed)),
        operating_system=_brief(_operating_system(printed)),
        cpu=_brief(_cpu(printed)),
        cores=_cores(printed),
        memory_bytes=int(memory[1]) * 1024 if memory else _whole(printed.text("sysctl -n hw.memsize")),
        gpus=tuple(_gpus(printed)),
        power_mode=_brief(_power_mode(printed)),
        jetson_clocks=_jetson_clocks(printed),
    )


def moment_of(printed: Texts) -> Moment:
    """See `Moment`."""
    return Moment(_load_average(printed), _machine_seconds(printed), _cpu_mhz(printed), _temperatures(printed))


def inventory_of(printed: Texts) -> Inventory:
    """See `Inventory`."""
    disk, packages = printed.text("disk").split(), printed.pairs("python")
    free_kib = _whole(disk[3]) if len(disk) > 3 else None
    return Inventory(
        machine=machine_of(printed),
        free_gib=None if free_kib is None else round(free_kib / 2**20, 1),
        tools=MappingProxyType(printed.pairs("tools")),
        python=packages.pop("python", None),
        packages=MappingProxyType(packages),
        trtexec=tensorrt_version(printed.text("trtexec")),
        gcc=_line(printed.text("gcc")),
        switch=_line(printed.text("switch")),
        installed=tuple(map(_bundle, printed.text("installed").splitlines())),
    )


def tensorrt_version(digits: str) -> str | None:
    """10.3.0 for ``100300``, and 8.6.1 for ``8601``, as trtexec writes them; None for what is no version."""
    if not re.fullmatch(r"[0-9]{4,6}", digits):
        return None
    number, base = int(digits), 10000 if len(digits) > 4 else 1000
    return f"{number // base}.{number // 100 % (base // 100)}.{number % 100}"


def _whole(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def _line(text: str) -> str | None:
    return _brief(text.partition("\n")[0]) or None


def _brief(text: str | None) -> str | None:
    return text and text[:_BRIEF]


def _bundle(place: str) -> tuple[str, str]:
    """``toy-executorch`` and ``1a2b3c4d5e6f`` for ``.../toy-executorch/versions/1a2b3c4d5e6f``."""
    *_, name, _versions, digest = ["", "", *place.strip("/").split("/")]
    return name, digest


def _model(printed: Texts) -> str | None:
    phone = f"{printed.text('getprop ro.product.manufacturer')} {printed.text('getprop ro.product.model')}".strip()
    return phone or printed.first("/proc/device-tree/model", "/sys/class/dmi/id/product_name", "sysctl -n hw.model")


def _distribution(printed: Texts) -> str | None:
    if system := printed.text("sw_vers -productVersion"):
        return f"macOS {system}"
    if release := printed.text("getprop ro.build.version.release"):
        return f"Android {release}"
    named = re.search(r"^PRETTY_NAME=(.*)$", printed.text("/etc/os-release"), re.MULTILINE)
    return named[1].strip("\"'") if named else None


def _operating_system(printed: Texts) -> str:
    kernel = " ".join(printed.text(f"uname -{letter}") for letter in "srm")
    if printed.text("sw_vers -productVersion"):
        return _distribution(printed)
    if printed.text("getprop ro.build.version.release"):
        return f"{_distribution(printed)}, {kernel}"
    jetson = re.search(r"R(\d+) .{0,80}REVISION: ([\d.]+)", printed.text("/etc/nv_tegra_release"))
    return f"Jetson Linux {jetson[1]}.{jetson[2]}, {kernel}" if jetson else kernel


def _cpu(printed: Texts) -> str | None:
    lines = [line.partition(":") for line in printed.text("/proc/cpuinfo").splitlines()]
    found = {key.strip(): value.strip() for key, _, value in lines}
    parts = [found[key] for key in ("CPU implementer", "CPU part", "CPU revision") if key in found]
    kind = printed.text("uname -m")
    arm = f"{kind} (implementer, part, revision {', '.join(parts)})" if parts else kind
    return found.get("model name") or printed.text("sysctl -n machdep.cpu.brand_string") or arm or None


def _cores(printed: Texts) -> int | None:
    text = map(printed.text, ("nproc", "getconf _NPROCESSORS_ONLN", "sysctl -n hw.logicalcpu"))
    cores = next(map(int, filter(str.isdigit, text)), None)
    quota, _, period = printed.text("/sys/fs/cgroup/cpu.max").partition(" ")
    if cores and quota.isdigit() and period.isdigit():
        return min(cores, max(1, int(quota) // int(period)))
    return cores


def _gpus(printed: Texts) -> Iterator[str]:
    driver = printed.text("/proc/driver/nvidia/version").partition("\n")[0].split("  ")
    version = next((part.split()[0] for part in driver[1:] if part.strip()[:1].isdigit()), "unknown")
    for _, text in printed.matching("/proc/driver/nvidia/gpus/*/information"):
        for model in re.findall(r"^Model:(.*)$", text, re.MULTILINE):
            yield f"{_brief(model.strip())}, driver {_brief(version)}"


def _power_mode(printed: Texts) -> str | None:
    governors = dict.fromkeys(printed.of_cores("scaling_governor"))
    jetson = " ".join(printed.text("nvpmodel -q").split())
    return "; ".join(part for part in (*governors, jetson) if part) or None


def _jetson_clocks(printed: Texts) -> bool | None:
    lowest, highest = printed.of_cores("scaling_min_freq"), printed.of_cores("scaling_max_freq")
    if not printed.text("/etc/nv_tegra_release") or not lowest:
        return None
    return lowest == highest


def _load_average(printed: Texts) -> float | None:
    """Linux: proc_loadavg(5). macOS prints `{ 1.52 1.71 1.80 }`."""
    text = re.search(r"[\d.]+", printed.first("/proc/loadavg", "sysctl -n vm.loadavg") or "")
    return round(float(text[0]), 2) if text else None


def _machine_seconds(printed: Texts) -> float | None:
    """CPU time that was not idle, with the time that a hypervisor took away: proc_stat(5)."""
    ticks = printed.text("/proc/stat").partition("\n")[0].split()[1:]
    if len(ticks) < 8:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, ticks[:8])
    # Android has no getconf; the kernel's own default is 100 everywhere
    return (user + nice + system + irq + softirq + steal) / (_whole(printed.text("getconf CLK_TCK")) or 100)


def _cpu_mhz(printed: Texts) -> float | None:
    """The governor's frequency, else that in the processor's description, which can be constant."""
    mhz: Sequence[float] = [int(khz) / 1000 for khz in printed.of_cores("scaling_cur_freq") if khz.isdigit()]
    if not mhz:
        described = re.findall(r"^cpu MHz\s*:\s*([\d.]+)$", printed.text("/proc/cpuinfo"), re.MULTILINE)
        mhz = list(map(float, described))
    return round(statistics.median(mhz)) if mhz else None


def _temperatures(printed: Texts) -> dict[str, float]:
    """The hottest zone of each name, without impossible values. Linux counts thousandths of a degree."""
    found: dict[str, float] = {}
    for path, name in printed.matching("/sys/class/thermal/thermal_zone*/type"):
        text = printed.text(f"{path.removesuffix('type')}temp")
        if re.fullmatch(r"-?\d+", text) and _POSSIBLE_C[0] < int(text) / 1000 < _POSSIBLE_C[1]:
            found[name] = max(int(text) / 1000, found.get(name, _POSSIBLE_C[0]))
    return found
