"""The conditions of a measurement: on what, under what load, with which versions. Imports nothing heavy.

What is read is read by `readings`, on this machine or on a device.
"""

import hashlib
import json
import platform
import re
import resource
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline import backends
from pipeline.artifacts.manifest import versions
from pipeline.devices import Device, facts
from pipeline.devices.facts import Readings

_TOLERATED_LOAD = 0.5
_CPU = "/sys/devices/system/cpu"
_POSSIBLE_C = (-40, 150)

Versions = Sequence[str] | Mapping[str, str | None]
"""Distributions whose installed versions here matter; or, for a device, the versions of what runs there."""


def fingerprint(packages: Versions | None = None, device: Device | None = None) -> str:
    """Sha256 over what makes a latency of a machine its own, as hex; the same until one of it changes.

    CPU, cores, memory in GiB, GPUs and their driver, power mode, operating system, Python, and the runtimes' versions.

    Args:
        packages: see `Versions`; default: what runs the files of any backend.
        device: default: this machine.

    Raises:
        DeviceError: it cannot be reached.
    """
    read = facts.machine(device or facts.here())
    parts = _machine(read) | {
        "power_mode": _power_mode(read),
        "os": _operating_system(read),
        "versions": _versions(backends.runtime_packages() if packages is None else packages),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Snapshot:
    """The machine at one moment, before or after a measurement.

    Attributes:
        load_average: runnable tasks over the minute before, None where the system does not say.
        at: seconds, monotonic.
        machine_seconds: CPU time that anybody has used since the start of the machine, None off Linux.
        own_seconds: CPU time that this process and its ended children have used. What still runs does not count, so
            a measurement ends its processes first. None where that is not known.
        cpu_mhz: frequency of the cores at this moment, their median; None where the system does not say.
        temperature_c: by the name of each thermal zone; empty where the system has none.
    """

    load_average: float | None
    at: float
    machine_seconds: float | None
    own_seconds: float | None
    cpu_mhz: float | None = None
    temperature_c: Mapping[str, float] = field(default_factory=dict)


def snapshot(device: Device | None = None, own_seconds: float | None = None) -> Snapshot:
    """Look at the machine; right before a measurement, and right after its processes have ended.

    Args:
        device: default: this machine.
        own_seconds: of a device, what the measurement's processes there have used; None where that is not known.

    Raises:
        DeviceError: it cannot be reached.
    """
    read = facts.moment(device or facts.here())
    if device is None:
        own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        own_seconds = sum(used.ru_utime + used.ru_stime for used in own)
    return Snapshot(
        load_average=_load_average(read),
        at=time.monotonic(),
        machine_seconds=_machine_seconds(read),
        own_seconds=own_seconds,
        cpu_mhz=_cpu_mhz(read),
        temperature_c=temperatures(read),
    )


def describe(
    threads: int,
    packages: Versions,
    before: Snapshot,
    after: Snapshot,
    warnings: Sequence[str] = (),
    device: Device | None = None,
) -> dict[str, Any]:
    """Write down the conditions of a measurement.

    Args:
        threads: cores that the measurement used.
        packages: see `Versions`.
        before, after: the machine around it.
        warnings: of the measurement itself, to stand beside those of the machine.
        device: where it was; default: this machine.

    Returns:
        JSON types. `other_load` is how many cores others kept busy meanwhile: a load average also remembers
        what ended a minute before. `busy` is true, and `warning` says so in words, where that was more than
        half a core, or, off Linux, where the load average was above the threads used. `warning` also tells where
        there were more threads than cores. `jetson_clocks` is true where a Jetson holds its CPU's clocks at their
        highest, and None on other machines.

    Raises:
        DeviceError: the device cannot be reached.
    """
    read = facts.machine(device or facts.here())
    machine, other = _machine(read), _other_load(before, after)
    busy = _busy(threads, other, before, after)
    crowded = None
    if threads > machine["cores"]:
        crowded = (
            f"{threads} threads shared {machine['cores']} core{'s' * (machine['cores'] > 1)}, so they waited for each "
            "other; set `threads` to no more than there are"
        )
    return machine | {
        "power_mode": _power_mode(read),
        "jetson_clocks": _jetson_clocks(read),
        "os": _operating_system(read),
        "threads": threads,
        "versions": _versions(packages),
        "load_average_before": before.load_average,
        "load_average_after": after.load_average,
        "other_load": other,
        "cpu_mhz_before": before.cpu_mhz,
        "cpu_mhz_after": after.cpu_mhz,
        "temperature_c_before": dict(before.temperature_c) or None,
        "temperature_c_after": dict(after.temperature_c) or None,
        "busy": busy is not None,
        "warning": "; ".join(filter(None, (busy, crowded, *warnings))) or None,
    }


def temperatures(read: Readings) -> dict[str, float]:
    """Degrees Celsius by the name of each thermal zone, the hottest of those of one name; what no chip can have is out.

    Linux's thermal zones count thousandths of a degree.
    """
    found: dict[str, float] = {}
    for path, name in read.matching("/sys/class/thermal/thermal_zone*/type"):
        said = read.text(f"{path.removesuffix('type')}temp")
        if re.fullmatch(r"-?\d+", said) and _POSSIBLE_C[0] < int(said) / 1000 < _POSSIBLE_C[1]:
            found[name] = max(int(said) / 1000, found.get(name, _POSSIBLE_C[0]))
    return found


def _versions(packages: Versions) -> dict[str, str | None]:
    if isinstance(packages, Mapping):
        return dict(packages)
    return {"python": platform.python_version(), **versions(*packages)}


def _busy(threads: int, other: float | None, before: Snapshot, after: Snapshot) -> str | None:
    """The warning that others used the machine, if they did."""
    loads = [one.load_average for one in (before, after) if one.load_average is not None]
    if other is not None and other > _TOLERATED_LOAD:
        used = f"others kept {other:.1f} cores busy meanwhile"
    elif other is None and max(loads, default=0) > threads:
        used = f"the load average was {max(loads)} with {threads} thread{'s' * (threads > 1)} in use"
    else:
        return None
    return f"{used}, so latencies may be too high; bench again on a quiet machine"


def _other_load(before: Snapshot, after: Snapshot) -> float | None:
    known = (before.machine_seconds, after.machine_seconds, before.own_seconds, after.own_seconds)
    if None in known or after.at <= before.at:
        return None
    others = (after.machine_seconds - before.machine_seconds) - (after.own_seconds - before.own_seconds)
    return round(max(0.0, others) / (after.at - before.at), 2)


def _load_average(read: Readings) -> float | None:
    """Linux: proc_loadavg(5). A Mac says `{ 1.52 1.71 1.80 }`."""
    said = re.search(r"[\d.]+", read.text("/proc/loadavg") or read.text("sysctl -n vm.loadavg"))
    return round(float(said[0]), 2) if said else None


def _cpu_mhz(read: Readings) -> float | None:
    """Median over the cores: what the governor set, else what the processor's description says, which can be fixed."""
    mhz = [int(khz) / 1000 for khz in _of_cores(read, "scaling_cur_freq") if khz.isdigit()]
    if not mhz:
        mhz = [
            float(found) for found in re.findall(r"^cpu MHz\s*:\s*([\d.]+)$", read.text("/proc/cpuinfo"), re.MULTILINE)
        ]
    return round(statistics.median(mhz)) if mhz else None


def _machine_seconds(read: Readings) -> float | None:
    """CPU time of all that was not idle, and what the hypervisor took away: proc_stat(5)."""
    ticks = read.text("/proc/stat").partition("\n")[0].split()[1:]
    if len(ticks) < 8:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, ticks[:8])
    a_second = read.text("getconf CLK_TCK")  # Android has no getconf; the kernel's own default is 100 everywhere
    return (user + nice + system + irq + softirq + steal) / (int(a_second) if a_second.isdigit() else 100)


def _machine(read: Readings) -> dict[str, Any]:
    return {
        "device": _device(read),
        "cpu": _cpu(read),
        "cores": _cores(read),
        "memory_gib": round(_memory_bytes(read) / 2**30),
        "gpus": _gpus(read),
    }


def _memory_bytes(read: Readings) -> int:
    if found := re.search(r"^MemTotal:\s*(\d+) kB", read.text("/proc/meminfo"), re.MULTILINE):
        return int(found[1]) * 1024
    said = read.text("sysctl -n hw.memsize")
    return int(said) if said.isdigit() else 0


def _device(read: Readings) -> str:
    """The board, phone or computer by its maker's name, never by its network name."""
    phone = f"{read.text('getprop ro.product.manufacturer')} {read.text('getprop ro.product.model')}".strip()
    named = map(read.text, ("/proc/device-tree/model", "/sys/class/dmi/id/product_name", "sysctl -n hw.model"))
    return phone or next(filter(None, named), "") or read.text("uname -m")


def _cpu(read: Readings) -> str:
    lines = [line.partition(":") for line in read.text("/proc/cpuinfo").splitlines()]
    found = {key.strip(): value.strip() for key, _, value in lines}
    parts = [found[key] for key in ("CPU implementer", "CPU part", "CPU revision") if key in found]
    kind = read.text("uname -m")
    arm = f"{kind} (implementer, part, revision {', '.join(parts)})" if parts else kind
    return found.get("model name") or read.text("sysctl -n machdep.cpu.brand_string") or arm


def _cores(read: Readings) -> int:
    """Cores that a process may use: its affinity, and the CPU quota of its control group."""
    said = next(filter(str.isdigit, map(read.text, ("nproc", "sysctl -n hw.logicalcpu"))), "1")
    quota, _, period = read.text("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        return min(int(said), max(1, int(quota) // int(period)))
    return int(said)


def _gpus(read: Readings) -> list[str]:
    """NVIDIA GPUs with the driver's version, as the driver lists them."""
    driver = read.text("/proc/driver/nvidia/version").partition("\n")[0].split("  ")
    version = next((part.split()[0] for part in driver[1:] if part.strip()[:1].isdigit()), "unknown")
    described = [text.splitlines() for _, text in read.matching("/proc/driver/nvidia/gpus/*/information")]
    models = [line.partition(":")[2].strip() for lines in described for line in lines if line.startswith("Model:")]
    return [f"{model}, driver {version}" for model in models]


def _power_mode(read: Readings) -> str | None:
    """The CPU's frequency governor, and a Jetson's power mode, where they can be read."""
    governors = dict.fromkeys(_of_cores(read, "scaling_governor"))
    jetson = " ".join(read.text("nvpmodel -q").split())
    return "; ".join(part for part in (*governors, jetson) if part) or None


def _jetson_clocks(read: Readings) -> bool | None:
    lowest, highest = _of_cores(read, "scaling_min_freq"), _of_cores(read, "scaling_max_freq")
    if not read.text("/etc/nv_tegra_release") or not lowest:
        return None
    return lowest == highest


def _of_cores(read: Readings, name: str) -> list[str]:
    return [text for _, text in read.matching(f"{_CPU}/cpu[0-9]*/cpufreq/{name}")]


def _operating_system(read: Readings) -> str:
    kernel = " ".join(read.text(f"uname -{letter}") for letter in "srm")
    if system := read.text("sw_vers -productVersion"):
        return f"macOS {system}"
    if release := read.text("getprop ro.build.version.release"):
        return f"Android {release}, {kernel}"
    jetson = re.search(r"R(\d+) .*REVISION: ([\d.]+)", read.text("/etc/nv_tegra_release"))
    return f"Jetson Linux {jetson[1]}.{jetson[2]}, {kernel}" if jetson else kernel
