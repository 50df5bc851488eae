"""The conditions tell the truth about this machine, and whether something else was running."""

import json
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.benchmark import conditions
from pipeline.devices import facts

ADVICE = "so latencies may be too high; bench again on a quiet machine"
HERE = conditions.snapshot()


def test_describe_gives_plain_json_with_what_was_asked():
    got = json.loads(json.dumps(conditions.describe(2, ("numpy", "no-such-package"), HERE, HERE), allow_nan=False))
    assert got["threads"] == 2
    assert got["versions"] == {
        "python": platform.python_version(),
        "numpy": got["versions"]["numpy"],
        "no-such-package": None,
    }
    assert got["versions"]["numpy"]
    assert got["cores"] >= 1 and got["memory_gib"] >= 1
    assert got["cpu"] and got["device"] and platform.machine() in got["os"]
    assert set(got) >= {
        "power_mode",
        "gpus",
        "load_average_before",
        "load_average_after",
        "other_load",
        "cpu_mhz_before",
        "cpu_mhz_after",
        "busy",
        "warning",
    }
    assert got["busy"] == (got["warning"] is not None)


@pytest.mark.parametrize(
    ("machine", "load", "warning"),
    [
        (12.0, 0.0, None),
        (
            30.0,
            0.0,
            f"others kept 2.0 cores busy meanwhile, {ADVICE}",
        ),
        (None, 0.9, None),
        (
            None,
            3.5,
            f"the load average was 3.5 with 1 thread in use, {ADVICE}",
        ),
    ],
)
def test_busy_where_others_used_the_machine(machine, load, warning):
    """In ten seconds this process and its children used ten: all else is others'."""
    before = conditions.Snapshot(load, 0.0, None if machine is None else 0.0, 0.0)
    after = conditions.Snapshot(0.0, 10.0, machine, 10.0)
    got = conditions.describe(1, (), before, after)
    assert (got["busy"], got["warning"]) == (warning is not None, warning)
    assert (got["load_average_before"], got["load_average_after"]) == (load, 0.0)


def test_warnings_of_the_measurement_stand_beside_those_of_the_machine():
    quiet = [conditions.Snapshot(0.0, at, at, at) for at in (0.0, 10.0)]
    got = conditions.describe(1, (), *quiet, warnings=["it never got steady", "nor quick"])
    assert (got["busy"], got["warning"]) == (False, "it never got steady; nor quick")


def test_more_threads_than_cores_are_warned_of_and_are_not_others_load():
    quiet = [conditions.Snapshot(0.0, at, at, at) for at in (0.0, 10.0)]
    cores = conditions.describe(1, (), *quiet)["cores"]
    got = conditions.describe(cores + 1, (), *quiet)
    assert not got["busy"]
    assert f"{cores + 1} threads shared {cores} core" in got["warning"] and "`threads`" in got["warning"]
    assert conditions.describe(cores, (), *quiet)["warning"] is None


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="frequencies are read from Linux's /proc and /sys")
def test_frequency_is_one_that_a_core_can_have():
    mhz = conditions.snapshot().cpu_mhz
    assert mhz is None or 100 < mhz < 10_000


@pytest.mark.skipif(sys.platform != "linux", reason="the CPU time of the machine is read from Linux's /proc")
def test_the_time_of_a_child_is_its_own_and_the_machine_counts_it_too():
    before = conditions.snapshot()
    subprocess.run([sys.executable, "-c", "for _ in range(8_000_000): pass"], check=True)
    after = conditions.snapshot()
    own, machine = after.own_seconds - before.own_seconds, after.machine_seconds - before.machine_seconds
    assert own > 0.02
    assert machine > own - 0.1  # the kernel counts the machine's time in ticks


def test_fingerprint_is_the_same_in_another_process():
    script = "from pipeline.benchmark import conditions; print(conditions.fingerprint())"
    project = Path(conditions.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], cwd=project, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == conditions.fingerprint()
    assert len(conditions.fingerprint()) == 64


def test_fingerprint_changes_with_a_runtimes_version():
    assert conditions.fingerprint(("numpy",)) != conditions.fingerprint(("pytest",))


JETSON = facts.Machine(
    system="Linux",
    release="5.15.136-tegra",
    architecture="aarch64",
    model="NVIDIA Jetson Orin Nano Developer Kit",
    distribution="Ubuntu 22.04.5 LTS",
    operating_system="Jetson Linux 36.3.0, Linux 5.15.136-tegra aarch64",
    cpu="aarch64 (implementer, part, revision 0x41, 0xd42, 1)",
    cores=6,
    memory_bytes=7802368 * 1024,
    gpus=(),
    power_mode="schedutil; NV Power Mode: 15W 0",
    jetson_clocks=True,
)
MOMENT = facts.Moment(load_average=0.52, machine_seconds=2.0, cpu_mhz=730, temperature_c={"cpu-thermal": 46.5})


@pytest.fixture
def told_by(monkeypatch):
    """Makes a machine have these facts; no such machine was at hand. Gives its conditions."""

    def read(machine, moment=MOMENT):
        monkeypatch.setattr(facts, "machine", lambda device: machine)
        monkeypatch.setattr(facts, "moment", lambda device: moment)
        device = facts.here()
        seen = conditions.snapshot(device, own_seconds=1.5)
        return conditions.describe(1, {"executorch": "1.5.1"}, seen, seen, device=device)

    return read


def test_what_is_told_of_a_device(told_by):
    got = told_by(JETSON)
    assert (got["device"], got["cpu"], got["os"]) == (JETSON.model, JETSON.cpu, JETSON.operating_system)
    assert (got["cores"], got["memory_gib"]) == (6, 7)
    assert (got["power_mode"], got["jetson_clocks"]) == ("schedutil; NV Power Mode: 15W 0", True)
    assert (got["temperature_c_before"], got["cpu_mhz_before"]) == ({"cpu-thermal": 46.5}, 730)
    assert (got["load_average_before"], got["versions"]) == (0.52, {"executorch": "1.5.1"})


def test_what_a_machine_does_not_say(told_by):
    silent = facts.inventory_of(facts.Texts.of("")).machine
    got = told_by(silent, facts.Moment(None, None, None, {}))
    assert (got["device"], got["cpu"], got["cores"], got["memory_gib"]) == ("unknown", "unknown", 1, 0)
    assert (got["jetson_clocks"], got["temperature_c_before"], got["power_mode"]) == (None, None, None)


def test_a_device_has_a_fingerprint_of_its_own(told_by):
    def fingerprint(machine):
        told_by(machine)
        return conditions.fingerprint({"executorch": "1.5.1"}, facts.here())

    jetson = fingerprint(JETSON)
    assert jetson == fingerprint(JETSON)
    assert fingerprint(replace(JETSON, power_mode="schedutil; NV Power Mode: MAXN 2")) != jetson
    assert fingerprint(replace(JETSON, model="Pixel 8")) != jetson
