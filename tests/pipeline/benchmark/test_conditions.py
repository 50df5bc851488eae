"""The conditions tell the truth about this machine, and whether something else was running."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import devices
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


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or os.cpu_count() < 2, reason="needs two cores to leave one out"
)
def test_cores_are_those_that_the_process_may_use():
    script = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    script += "from pipeline.benchmark.conditions import describe, snapshot; "
    script += "print(describe(1, (), snapshot(), snapshot())['cores'])"
    project = Path(conditions.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], cwd=project, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


JETSON = {
    "/proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit",
    "/proc/cpuinfo": "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\nCPU revision\t: 1",
    "/proc/meminfo": "MemTotal:        7802368 kB\nMemFree:  1 kB",
    "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil",
    "/sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "schedutil",
    "/sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq": "1510400",
    "/sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "1510400",
    "/etc/nv_tegra_release": "# R36 (release), REVISION: 3.0, GCID: 36923193, BOARD: generic, EABI: aarch64",
    "nvpmodel -q": "NV Power Mode: 15W\n0",
    "nproc": "6",
    "uname -s": "Linux",
    "uname -r": "5.15.136-tegra",
    "uname -m": "aarch64",
    "/sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "/sys/class/thermal/thermal_zone0/temp": "46500",
    "/sys/class/thermal/thermal_zone1/type": "tj-thermal",
    "/sys/class/thermal/thermal_zone1/temp": "-256000",
    "/proc/stat": "cpu  100 0 100 5000 0 0 0 0 0 0\ncpu0 1 1 1",
    "/proc/loadavg": "0.52 0.58 0.59 1/612 5012",
    "/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "729600",
}
PHONE = {
    "getprop ro.product.manufacturer": "Google",
    "getprop ro.product.model": "Pixel 8",
    "getprop ro.build.version.release": "15",
    "/proc/cpuinfo": "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd80\nCPU revision\t: 1",
    "nproc": "9",
    "uname -s": "Linux",
    "uname -r": "5.15.137-android14",
    "uname -m": "aarch64",
}
MAC = {
    "sysctl -n hw.model": "Mac14,7",
    "sysctl -n machdep.cpu.brand_string": "Apple M2",
    "sysctl -n hw.memsize": "17179869184",
    "sysctl -n hw.logicalcpu": "8",
    "sysctl -n vm.loadavg": "{ 1.52 1.71 1.80 }",
    "sw_vers -productVersion": "15.5",
    "uname -m": "arm64",
}


@pytest.fixture
def said_by(monkeypatch):
    """Makes a machine say these things of itself, as such machines do; none was at hand. Gives its conditions."""

    def read(texts):
        monkeypatch.setattr(facts, "machine", lambda device: facts.Readings(texts))
        monkeypatch.setattr(facts, "moment", lambda device: facts.Readings(texts))
        device = facts.here()
        seen = conditions.snapshot(device, own_seconds=1.5)
        return conditions.describe(1, {"executorch": "1.5.1"}, seen, seen, device=device)

    return read


def test_what_a_jetson_says(said_by):
    got = said_by(JETSON)
    assert (got["device"], got["cores"], got["memory_gib"]) == ("NVIDIA Jetson Orin Nano Developer Kit", 6, 7)
    assert got["cpu"] == "aarch64 (implementer, part, revision 0x41, 0xd42, 1)"
    assert (got["power_mode"], got["jetson_clocks"]) == ("schedutil; NV Power Mode: 15W 0", True)
    assert got["os"] == "Jetson Linux 36.3.0, Linux 5.15.136-tegra aarch64"
    assert got["temperature_c_before"] == {"cpu-thermal": 46.5}, "no chip is 256 degrees below zero"
    assert (got["cpu_mhz_before"], got["load_average_before"]) == (730, 0.52)
    assert got["versions"] == {"executorch": "1.5.1"}


def test_a_jetson_whose_clocks_are_free(said_by):
    free = JETSON | {"/sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq": "729600"}
    assert said_by(free)["jetson_clocks"] is False


def test_what_a_phone_says(said_by):
    got = said_by(PHONE)
    assert (got["device"], got["os"]) == ("Google Pixel 8", "Android 15, Linux 5.15.137-android14 aarch64")
    assert (got["jetson_clocks"], got["temperature_c_before"], got["power_mode"]) == (None, None, None)


def test_what_a_mac_says(said_by):
    got = said_by(MAC)
    assert (got["device"], got["cpu"], got["cores"], got["memory_gib"]) == ("Mac14,7", "Apple M2", 8, 16)
    assert (got["os"], got["load_average_before"]) == ("macOS 15.5", 1.52)


def test_a_device_has_a_fingerprint_of_its_own(said_by):
    said_by(JETSON)
    jetson = conditions.fingerprint({"executorch": "1.5.1"}, facts.here())
    assert jetson == conditions.fingerprint({"executorch": "1.5.1"}, facts.here())
    said_by(JETSON | {"nvpmodel -q": "NV Power Mode: MAXN\n2"})
    assert conditions.fingerprint({"executorch": "1.5.1"}, facts.here()) != jetson, "another power mode"
    said_by(PHONE)
    assert conditions.fingerprint({"executorch": "1.5.1"}, facts.here()) != jetson


def test_a_device_reads_as_this_machine_does(ssh_device):
    """The loopback device is this machine, so that both say the same."""
    there = devices.parse(ssh_device.url)
    mine, its = facts.machine(facts.here()).texts, facts.machine(there).texts
    assert set(its) == set(mine)
    assert {name: text for name, text in its.items() if name.startswith("uname")} == {
        name: text for name, text in mine.items() if name.startswith("uname")
    }
    assert conditions.snapshot(there).machine_seconds >= HERE.machine_seconds
