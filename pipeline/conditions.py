"""The conditions of a measurement: on what, under what load, with which versions. Imports nothing heavy."""

import hashlib
import json
import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.manifest import versions

RUNTIMES = ("executorch", "onnxruntime", "tensorrt", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "coremltools")
_TOLERATED_LOAD = 0.5


def fingerprint(packages: Sequence[str] = RUNTIMES) -> str:
    """Sha256 over what makes a latency of this machine its own, as hex; the same until one of it changes.

    CPU, cores, memory in GiB, GPUs and their driver, operating system, Python, and the runtimes' versions.
    """
    machine = _machine() | {"os": _operating_system(), "python": platform.python_version()}
    parts = machine | {"versions": versions(*packages)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Snapshot:
    """The machine at one moment, before or after a measurement.

    Attributes:
        load_average: runnable tasks over the minute before, None where the system does not say.
        at: seconds, monotonic.
        machine_seconds: CPU time that anybody has used since the start of the machine, None off Linux.
        own_seconds: CPU time that this process and its ended children have used. What still runs does not count, so
            a measurement ends its processes first.
        cpu_mhz: frequency of the cores at this moment, their median; None where the system does not say.
    """

    load_average: float | None
    at: float
    machine_seconds: float | None
    own_seconds: float
    cpu_mhz: float | None = None


def snapshot() -> Snapshot:
    """Look at the machine; right before a measurement, and right after its processes have ended."""
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return Snapshot(
        load_average=_load_average(),
        at=time.monotonic(),
        machine_seconds=_machine_seconds(),
        own_seconds=sum(used.ru_utime + used.ru_stime for used in own),
        cpu_mhz=_cpu_mhz(),
    )


def describe(
    threads: int, packages: Sequence[str], before: Snapshot, after: Snapshot, warnings: Sequence[str] = ()
) -> dict[str, Any]:
    """Write down the conditions of a measurement.

    Args:
        threads: cores that the measurement used.
        packages: distributions whose versions matter.
        before, after: the machine around it.
        warnings: of the measurement itself, to stand beside those of the machine.

    Returns:
        JSON types. `other_load` is how many cores others kept busy meanwhile: a load average also remembers
        what ended a minute before. `busy` is true, and `warning` says so in words, where that was more than
        half a core, or, off Linux, where the load average was above the threads used. `warning` also tells where
        there were more threads than cores.
    """
    machine, other = _machine(), _other_load(before, after)
    busy = _busy(threads, other, before, after)
    crowded = None
    if threads > machine["cores"]:
        crowded = (
            f"{threads} threads shared {machine['cores']} core{'s' * (machine['cores'] > 1)}, so they waited for each "
            "other; set `threads` to no more than there are"
        )
    return machine | {
        "power_mode": _power_mode(),
        "os": _operating_system(),
        "threads": threads,
        "versions": {"python": platform.python_version(), **versions(*packages)},
        "load_average_before": before.load_average,
        "load_average_after": after.load_average,
        "other_load": other,
        "cpu_mhz_before": before.cpu_mhz,
        "cpu_mhz_after": after.cpu_mhz,
        "busy": busy is not None,
        "warning": "; ".join(filter(None, (busy, crowded, *warnings))) or None,
    }


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
    if before.machine_seconds is None or after.machine_seconds is None or after.at <= before.at:
        return None
    others = (after.machine_seconds - before.machine_seconds) - (after.own_seconds - before.own_seconds)
    return round(max(0.0, others) / (after.at - before.at), 2)


def _load_average() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def _cpu_mhz() -> float | None:
    """Median over the cores: what the governor set, else what the processor's description says, which can be fixed."""
    set_khz = [_text(path) for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")]
    mhz = [int(khz) / 1000 for khz in set_khz if khz.isdigit()]
    if not mhz:
        mhz = [float(found) for found in re.findall(r"^cpu MHz\s*:\s*([\d.]+)$", _text("/proc/cpuinfo"), re.MULTILINE)]
    return round(statistics.median(mhz)) if mhz else None


def _machine_seconds() -> float | None:
    """CPU time of all that was not idle, and what the hypervisor took away: proc_stat(5)."""
    ticks = _text("/proc/stat").partition("\n")[0].split()[1:]
    if len(ticks) < 8:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, ticks[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _machine() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "device": _device(),
        "cpu": _cpu(),
        "cores": _cores(),
        "memory_gib": round(memory / 2**30),
        "gpus": _gpus(),
    }


def _device() -> str:
    """The board or computer by its maker's name, never by its network name."""
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "hw.model") or "Mac"
    named = ("/proc/device-tree/model", "/sys/class/dmi/id/product_name")
    return next((text for text in map(_text, named) if text), None) or platform.machine()


def _cpu() -> str:
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    lines = [line.partition(":") for line in _text("/proc/cpuinfo").splitlines()]
    found = {key.strip(): value.strip() for key, _, value in lines}
    parts = [found[key] for key in ("CPU implementer", "CPU part", "CPU revision") if key in found]
    arm = f"{platform.machine()} (implementer, part, revision {', '.join(parts)})" if parts else platform.machine()
    return found.get("model name") or arm


def _cores() -> int:
    """Cores that this process may use: its affinity, and the CPU quota of its control group."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _text("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        allowed = min(allowed, max(1, int(quota) // int(period)))
    return allowed


def _gpus() -> list[str]:
    """NVIDIA GPUs with the driver's version, as the driver lists them."""
    driver = _text("/proc/driver/nvidia/version").partition("\n")[0].split("  ")
    version = next((part.split()[0] for part in driver[1:] if part.strip()[:1].isdigit()), "unknown")
    described = [_text(path).splitlines() for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))]
    models = [line.partition(":")[2].strip() for lines in described for line in lines if line.startswith("Model:")]
    return [f"{model}, driver {version}" for model in models]


def _power_mode() -> str | None:
    """The CPU's frequency governor, and a Jetson's power mode, where they can be read."""
    governor = _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    jetson = " ".join(_output("nvpmodel", "-q").split())
    return "; ".join(part for part in (governor, jetson) if part) or None


def _operating_system() -> str:
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}"
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_bytes().decode(errors="replace").strip("\0\n ")
    except OSError:
        return ""


def _output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=10).stdout.strip()
