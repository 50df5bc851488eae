"""Facts about a machine, this one or a device: what it is, what is installed there, and how busy it is now.

All of them are parsed here from what one shell script prints; see `facts_script`. None stands for what a machine does
not say.
"""

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from types import MappingProxyType

from pipeline.devices import Device, parse
from pipeline.devices.facts_script import MARK, SCRIPT
from pipeline.devices.shell import SHORT_SECONDS

_CPU = "/sys/devices/system/cpu"
_POSSIBLE_C = (-40, 150)


@dataclass(frozen=True)
class Machine:
    """What stays the same from one moment to the next.

    Attributes:
        system, release: of uname: ``Linux``, ``Darwin``; the kernel's.
        architecture: ``x86_64``, ``aarch64``, ``armv7l``; of Android its ABI, ``arm64-v8a``.
        model: the board, phone or computer by its maker's name, never by its network name.
        distribution: ``Ubuntu 22.04.4 LTS``, ``Android 14``, ``macOS 15.5``.
        operating_system: with the kernel, ``Jetson Linux 36.3.0, Linux 5.15.136-tegra aarch64``.
        cpu: by its maker's name.
        cores: that a process may use: its affinity, and the CPU quota of its control group.
        memory_bytes: in all.
        gpus: NVIDIA GPUs with the driver's version, as the driver lists them.
        power_mode: the CPU's frequency governor, and a Jetson's power mode.
        jetson_clocks: whether a Jetson holds its CPU's clocks at their highest; None on other machines.
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
        """A phone or tablet, whose file system is laid out in another way."""
        return bool(self.distribution and self.distribution.startswith("Android"))


@dataclass(frozen=True)
class Moment:
    """What changes.

    Attributes:
        load_average: runnable tasks over the minute before.
        machine_seconds: CPU time that anybody has used since the start of the machine; None off Linux.
        cpu_mhz: frequency of the cores, their median.
        temperature_c: by the name of each thermal zone; empty where the system has none.
    """

    load_average: float | None
    machine_seconds: float | None
    cpu_mhz: float | None
    temperature_c: Mapping[str, float]


@dataclass(frozen=True)
class Inventory:
    """A machine and what is installed there.

    Attributes:
        machine: what it is.
        free_gib: on the disk where bundles are installed.
        tools: programs, and where they are.
        python: version of the Python that was asked, ``3.10.12``.
        packages: runtimes that it has, and their versions.
        trtexec, gcc: versions.
        switch: what replaces a symbolic link in one step there, if it is no Python.
        installed: ``<model>-<target>`` and the first digits of the bundle's digest, for each that is current.
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
    """What the script printed, by path or command.

    Attributes:
        named: without the zeros and line ends around them; what is not there is not in it.
    """

    named: Mapping[str, str]

    @classmethod
    def of(cls, printed: str) -> "Texts":
        """What stands before the first mark is none of the script's: a banner, say."""
        parts = (part.partition("\n") for part in f"\n{printed}".split(f"\n{MARK} ")[1:])
        return cls({name: text.strip("\0\n ") for name, _, text in parts})

    def text(self, name: str) -> str:
        """Of a path or a command; empty where there is none."""
        return self.named.get(name, "")

    def first(self, *names: str) -> str | None:
        """The first of these that says anything."""
        return next(filter(None, map(self.text, names)), None)

    def matching(self, pattern: str) -> Iterator[tuple[str, str]]:
        """Path and text of what a pattern of the shell's matches, in the order of paths."""
        return ((name, text) for name, text in sorted(self.named.items()) if fnmatch(name, pattern))

    def of_cores(self, name: str) -> list[str]:
        """Of each core's frequency settings, the one of this name."""
        return [text for _, text in self.matching(f"{_CPU}/cpu[0-9]*/cpufreq/{name}")]

    def pairs(self, name: str) -> dict[str, str]:
        """Of lines ``key value``."""
        return {key: value for key, _, value in (line.partition(" ") for line in self.text(name).splitlines()) if key}


@cache
def here() -> Device:
    """This machine."""
    return parse("local")


def machine(device: Device) -> Machine:
    """What a machine is.

    Raises:
        DeviceError: the device cannot be reached.
    """
    return machine_of(_ask(device, "machine"))


def moment(device: Device) -> Moment:
    """The load, frequencies and temperatures of this moment.

    Raises:
        DeviceError: as `machine`.
    """
    return moment_of(_ask(device, "moment"))


def inventory(device: Device, home: str, python: str) -> Inventory:
    """What a machine is and what is installed there.

    Args:
        device: this machine or another.
        home: where bundles are installed; it need not exist.
        python: the Python that is asked for its packages.

    Raises:
        DeviceError: as `machine`.
    """
    return inventory_of(_ask(device, "inventory", home, python))


def _ask(device: Device, *words: str) -> Texts:
    return Texts.of(device.output(["sh", "-c", SCRIPT, "sh", *words], timeout=SHORT_SECONDS))


def machine_of(told: Texts) -> Machine:
    """See `Machine`."""
    memory = re.search(r"^MemTotal:\s*(\d+) kB", told.text("/proc/meminfo"), re.MULTILINE)
    return Machine(
        system=told.text("uname -s") or "unknown",
        release=told.text("uname -r"),
        architecture=told.first("getprop ro.product.cpu.abi", "uname -m") or "unknown",
        model=_model(told),
        distribution=_distribution(told),
        operating_system=_operating_system(told),
        cpu=_cpu(told),
        cores=_cores(told),
        memory_bytes=int(memory[1]) * 1024 if memory else _whole(told.text("sysctl -n hw.memsize")),
        gpus=tuple(_gpus(told)),
        power_mode=_power_mode(told),
        jetson_clocks=_jetson_clocks(told),
    )


def moment_of(told: Texts) -> Moment:
    """See `Moment`."""
    return Moment(_load_average(told), _machine_seconds(told), _cpu_mhz(told), _temperatures(told))


def inventory_of(told: Texts) -> Inventory:
    """See `Inventory`."""
    disk, packages = told.text("disk").split(), told.pairs("python")
    free_kib = _whole(disk[3]) if len(disk) > 3 else None
    return Inventory(
        machine=machine_of(told),
        free_gib=None if free_kib is None else round(free_kib / 2**20, 1),
        tools=MappingProxyType(told.pairs("tools")),
        python=packages.pop("python", None),
        packages=MappingProxyType(packages),
        trtexec=tensorrt_version(told.text("trtexec")),
        gcc=_line(told.text("gcc")),
        switch=_line(told.text("switch")),
        installed=tuple(map(_bundle, told.text("installed").splitlines())),
    )


def tensorrt_version(digits: str) -> str | None:
    """10.3.0 for ``100300``, and 8.6.1 for ``8601``, as trtexec writes them; None for what is no version."""
    if not re.fullmatch(r"\d{4,}", digits):
        return None
    number, base = int(digits), 10000 if len(digits) > 4 else 1000
    return f"{number // base}.{number // 100 % (base // 100)}.{number % 100}"


def _whole(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _line(text: str) -> str | None:
    return text.partition("\n")[0] or None


def _bundle(place: str) -> tuple[str, str]:
    """``toy-executorch`` and ``1a2b3c4d5e6f`` for ``.../toy-executorch/versions/1a2b3c4d5e6f``."""
    *_, name, _versions, digest = ["", "", *place.strip("/").split("/")]
    return name, digest


def _model(told: Texts) -> str | None:
    phone = f"{told.text('getprop ro.product.manufacturer')} {told.text('getprop ro.product.model')}".strip()
    return phone or told.first("/proc/device-tree/model", "/sys/class/dmi/id/product_name", "sysctl -n hw.model")


def _distribution(told: Texts) -> str | None:
    if system := told.text("sw_vers -productVersion"):
        return f"macOS {system}"
    if release := told.text("getprop ro.build.version.release"):
        return f"Android {release}"
    named = re.search(r"^PRETTY_NAME=(.*)$", told.text("/etc/os-release"), re.MULTILINE)
    return named[1].strip("\"'") if named else None


def _operating_system(told: Texts) -> str:
    kernel = " ".join(told.text(f"uname -{letter}") for letter in "srm")
    if told.text("sw_vers -productVersion"):
        return _distribution(told)
    if told.text("getprop ro.build.version.release"):
        return f"{_distribution(told)}, {kernel}"
    jetson = re.search(r"R(\d+) .*REVISION: ([\d.]+)", told.text("/etc/nv_tegra_release"))
    return f"Jetson Linux {jetson[1]}.{jetson[2]}, {kernel}" if jetson else kernel


def _cpu(told: Texts) -> str | None:
    lines = [line.partition(":") for line in told.text("/proc/cpuinfo").splitlines()]
    found = {key.strip(): value.strip() for key, _, value in lines}
    parts = [found[key] for key in ("CPU implementer", "CPU part", "CPU revision") if key in found]
    kind = told.text("uname -m")
    arm = f"{kind} (implementer, part, revision {', '.join(parts)})" if parts else kind
    return found.get("model name") or told.text("sysctl -n machdep.cpu.brand_string") or arm or None


def _cores(told: Texts) -> int | None:
    said = map(told.text, ("nproc", "getconf _NPROCESSORS_ONLN", "sysctl -n hw.logicalcpu"))
    cores = next(map(int, filter(str.isdigit, said)), None)
    quota, _, period = told.text("/sys/fs/cgroup/cpu.max").partition(" ")
    if cores and quota.isdigit() and period.isdigit():
        return min(cores, max(1, int(quota) // int(period)))
    return cores


def _gpus(told: Texts) -> Iterator[str]:
    driver = told.text("/proc/driver/nvidia/version").partition("\n")[0].split("  ")
    version = next((part.split()[0] for part in driver[1:] if part.strip()[:1].isdigit()), "unknown")
    for _, text in told.matching("/proc/driver/nvidia/gpus/*/information"):
        for model in re.findall(r"^Model:(.*)$", text, re.MULTILINE):
            yield f"{model.strip()}, driver {version}"


def _power_mode(told: Texts) -> str | None:
    governors = dict.fromkeys(told.of_cores("scaling_governor"))
    jetson = " ".join(told.text("nvpmodel -q").split())
    return "; ".join(part for part in (*governors, jetson) if part) or None


def _jetson_clocks(told: Texts) -> bool | None:
    lowest, highest = told.of_cores("scaling_min_freq"), told.of_cores("scaling_max_freq")
    if not told.text("/etc/nv_tegra_release") or not lowest:
        return None
    return lowest == highest


def _load_average(told: Texts) -> float | None:
    """Linux: proc_loadavg(5). A Mac says `{ 1.52 1.71 1.80 }`."""
    said = re.search(r"[\d.]+", told.first("/proc/loadavg", "sysctl -n vm.loadavg") or "")
    return round(float(said[0]), 2) if said else None


def _machine_seconds(told: Texts) -> float | None:
    """CPU time of all that was not idle, and what the hypervisor took away: proc_stat(5)."""
    ticks = told.text("/proc/stat").partition("\n")[0].split()[1:]
    if len(ticks) < 8:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, ticks[:8])
    # Android has no getconf; the kernel's own default is 100 everywhere
    return (user + nice + system + irq + softirq + steal) / (_whole(told.text("getconf CLK_TCK")) or 100)


def _cpu_mhz(told: Texts) -> float | None:
    """What the governor set, else what the processor's description says, which can be fixed."""
    mhz: Sequence[float] = [int(khz) / 1000 for khz in told.of_cores("scaling_cur_freq") if khz.isdigit()]
    if not mhz:
        told_mhz = re.findall(r"^cpu MHz\s*:\s*([\d.]+)$", told.text("/proc/cpuinfo"), re.MULTILINE)
        mhz = list(map(float, told_mhz))
    return round(statistics.median(mhz)) if mhz else None


def _temperatures(told: Texts) -> dict[str, float]:
    """The hottest of the zones of one name; what no chip can have is out. Linux counts thousandths of a degree."""
    found: dict[str, float] = {}
    for path, name in told.matching("/sys/class/thermal/thermal_zone*/type"):
        said = told.text(f"{path.removesuffix('type')}temp")
        if re.fullmatch(r"-?\d+", said) and _POSSIBLE_C[0] < int(said) / 1000 < _POSSIBLE_C[1]:
            found[name] = max(int(said) / 1000, found.get(name, _POSSIBLE_C[0]))
    return found
