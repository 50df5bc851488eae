"""The conditions of a measurement: the machine, its load, the versions. Imports nothing heavy.

`devices.facts` reads them from the machine.
"""

import hashlib
import json
import platform
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline import backends
from pipeline.artifacts.manifest import versions
from pipeline.devices import Device, facts
from pipeline.devices.facts import Machine

_TOLERATED_LOAD = 0.5

Versions = Sequence[str] | Mapping[str, str | None]
"""Distributions whose installed versions here matter; or, for a device, the versions of what runs there."""


def fingerprint(packages: Versions | None = None, device: Device | None = None) -> str:
    """Sha256 over all that a latency depends on besides the file, hex.

    That is CPU, cores, memory in GiB, GPUs and their driver, power mode, operating system, Python, and the runtimes'
    versions.

    Args:
        packages: see `Versions`; default: what runs the files of any backend.
        device: default: this machine.

    Raises:
        DeviceError: it cannot be reached.
    """
    read = facts.machine(device or facts.here())
    parts = _kind(read) | {
        "power_mode": read.power_mode,
        "os": read.operating_system,
        "versions": _versions(backends.runtime_packages() if packages is None else packages),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Snapshot:
    """The state of the machine before or after a measurement.

    Attributes:
        load_average: runnable tasks over the last minute; None if the system does not report it.
        at: seconds, monotonic.
        machine_seconds: CPU time of all processes since the machine started; None except on Linux.
        own_seconds: CPU time of this process and its children that have ended. Running children are not included, so a
            measurement ends its processes first. None if it is not known.
        cpu_mhz: median frequency of the cores; None if the system does not report it.
        temperature_c: by the name of each thermal zone; empty if the system has none.
    """

    load_average: float | None
    at: float
    machine_seconds: float | None
    own_seconds: float | None
    cpu_mhz: float | None = None
    temperature_c: Mapping[str, float] = field(default_factory=dict)


def snapshot(device: Device | None = None, own_seconds: float | None = None) -> Snapshot:
    """The state of the machine now. Call it right before a measurement, and right after its processes have ended.

    Args:
        device: default: this machine.
        own_seconds: for a device, CPU time of the measurement's processes there; None if it is not known.

    Raises:
        DeviceError: it cannot be reached.
    """
    read = facts.moment(device or facts.here())
    if device is None:
        own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        own_seconds = sum(used.ru_utime + used.ru_stime for used in own)
    return Snapshot(
        load_average=read.load_average,
        at=time.monotonic(),
        machine_seconds=read.machine_seconds,
        own_seconds=own_seconds,
        cpu_mhz=read.cpu_mhz,
        temperature_c=read.temperature_c,
    )


def describe(
    threads: int,
    packages: Versions,
    before: Snapshot,
    after: Snapshot,
    warnings: Sequence[str] = (),
    device: Device | None = None,
) -> dict[str, Any]:
    """The conditions of a measurement.

    Args:
        threads: that the measurement used.
        packages: see `Versions`.
        before, after: the state of the machine before and after.
        warnings: of the measurement itself; they are added to those about the machine.
        device: that was measured; default: this machine.

    Returns:
        JSON types. `other_load` is the number of cores that other programs kept busy (a load average would include
        programs that ended before). `busy` is true if that was more than half a core; except on Linux, if the load
        average was above the number of threads. `warning` says so in words, and says if there were more threads than
        cores. `jetson_clocks` is true if the clocks of a Jetson's CPU are fixed at their highest, and None on other
        machines.

    Raises:
        DeviceError: the device cannot be reached.
    """
    read = facts.machine(device or facts.here())
    machine, other = _kind(read), _other_load(before, after)
    busy = _busy(threads, other, before, after)
    crowded = None
    if threads > machine["cores"]:
        crowded = (
            f"{threads} threads shared {machine['cores']} core{'s' * (machine['cores'] > 1)}, so they waited for each "
            "other; set `threads` to no more than there are"
        )
    return machine | {
        "power_mode": read.power_mode,
        "jetson_clocks": read.jetson_clocks,
        "os": read.operating_system,
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


def _versions(packages: Versions) -> dict[str, str | None]:
    if isinstance(packages, Mapping):
        return dict(packages)
    return {"python": platform.python_version(), **versions(*packages)}


def _busy(threads: int, other: float | None, before: Snapshot, after: Snapshot) -> str | None:
    """The warning that other programs used the machine; None if they did not."""
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


def _kind(machine: Machine) -> dict[str, Any]:
    return {
        "device": machine.model or machine.architecture,
        "cpu": machine.cpu or "unknown",
        "cores": machine.cores or 1,
        "memory_gib": round((machine.memory_bytes or 0) / 2**30),
        "gpus": list(machine.gpus),
    }
