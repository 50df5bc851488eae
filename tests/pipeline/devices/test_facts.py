"""What machines say of themselves by one script; and what follows for targets.

The texts are as such machines print them; no Jetson, phone or Mac was at hand.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from pipeline import devices
from pipeline.cli import capabilities
from pipeline.config.targets import Target
from pipeline.devices import facts
from pipeline.devices.facts_script import SCRIPT

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
    "/etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\nVERSION_ID="22.04"',
    "disk": "/dev/nvme0n1p1 102687672 50258872 52428800 49% /",
    "tools": "\n".join(f"{name} /usr/bin/{name}" for name in ("python3", "g++", "tar", "sha256sum", "flock"))
    + "\ntrtexec /usr/src/tensorrt/bin/trtexec",
    "switch": "mv -T",
    "gcc": "11.4.0",
    "trtexec": "100300",
    "python": "python 3.10.12\ntensorrt 10.3.0",
    "installed": "/home/anna/.local/share/repnets/toy-tensorrt/versions/1a2b3c4d5e6f",
}
PHONE = {
    "getprop ro.product.manufacturer": "Google",
    "getprop ro.product.model": "Pixel 8",
    "getprop ro.build.version.release": "15",
    "getprop ro.product.cpu.abi": "arm64-v8a",
    "/proc/cpuinfo": "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd80\nCPU revision\t: 1",
    "nproc": "9",
    "uname -s": "Linux",
    "uname -r": "5.15.137-android14",
    "uname -m": "aarch64",
    "tools": "\n".join(f"{name} /system/bin/{name}" for name in ("tar", "sha256sum", "flock")),
    "switch": "toybox's ln\nmv -T",
}
MAC = {
    "sysctl -n hw.model": "Mac14,7",
    "sysctl -n machdep.cpu.brand_string": "Apple M2",
    "sysctl -n hw.memsize": "17179869184",
    "sysctl -n hw.logicalcpu": "8",
    "sysctl -n vm.loadavg": "{ 1.52 1.71 1.80 }",
    "sw_vers -productVersion": "15.5",
    "uname -s": "Darwin",
    "uname -m": "arm64",
}


def inventory(texts: dict[str, str]) -> facts.Inventory:
    return facts.inventory_of(facts.Texts(texts))


@pytest.fixture
def target():
    def of(backend: str) -> Target:
        return Target(name="mine", backend=backend, precision="fp32")

    return of


def test_a_jetson():
    machine, moment = facts.machine_of(facts.Texts(JETSON)), facts.moment_of(facts.Texts(JETSON))
    assert (machine.model, machine.cores) == ("NVIDIA Jetson Orin Nano Developer Kit", 6)
    assert machine.memory_bytes == 7802368 * 1024
    assert machine.cpu == "aarch64 (implementer, part, revision 0x41, 0xd42, 1)"
    assert (machine.power_mode, machine.jetson_clocks) == ("schedutil; NV Power Mode: 15W 0", True)
    assert machine.operating_system == "Jetson Linux 36.3.0, Linux 5.15.136-tegra aarch64"
    assert machine.distribution == "Ubuntu 22.04.5 LTS"
    assert moment.temperature_c == {"cpu-thermal": 46.5}, "no chip is 256 degrees below zero"
    assert (moment.cpu_mhz, moment.load_average, moment.machine_seconds) == (730, 0.52, 2.0)


def test_a_jetson_whose_clocks_are_free():
    free = JETSON | {"/sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq": "729600"}
    assert facts.machine_of(facts.Texts(free)).jetson_clocks is False


def test_a_phone():
    machine = facts.machine_of(facts.Texts(PHONE))
    assert (machine.model, machine.operating_system, machine.distribution, machine.architecture) == (
        "Google Pixel 8",
        "Android 15, Linux 5.15.137-android14 aarch64",
        "Android 15",
        "arm64-v8a",
    )
    assert (machine.is_android, machine.jetson_clocks, machine.power_mode) == (True, None, None)
    assert facts.moment_of(facts.Texts(PHONE)).temperature_c == {}


def test_a_mac():
    machine = facts.machine_of(facts.Texts(MAC))
    assert (machine.model, machine.cpu, machine.cores, machine.memory_bytes) == ("Mac14,7", "Apple M2", 8, 2**34)
    assert (machine.operating_system, machine.distribution) == ("macOS 15.5", "macOS 15.5")
    assert facts.moment_of(facts.Texts(MAC)).load_average == 1.52


@pytest.mark.parametrize(("quota", "cores"), [("150000 100000", 1), ("max 100000", 6), ("900000 100000", 6)])
def test_a_control_group_has_a_quota(quota, cores):
    assert facts.machine_of(facts.Texts(JETSON | {"/sys/fs/cgroup/cpu.max": quota})).cores == cores


def test_what_is_installed():
    found = inventory(JETSON)
    assert (found.free_gib, found.trtexec, found.python, found.gcc) == (50.0, "10.3.0", "3.10.12", "11.4.0")
    assert dict(found.packages) == {"tensorrt": "10.3.0"}
    assert found.installed == (("toy-tensorrt", "1a2b3c4d5e6f"),)
    phone = inventory(PHONE)
    assert (phone.switch, phone.python, phone.trtexec) == ("toybox's ln", None, None)


def test_nothing_that_is_said_is_nothing_that_is_known():
    found, moment = facts.inventory_of(facts.Texts.of("")), facts.moment_of(facts.Texts.of(""))
    assert (found.machine.system, found.machine.architecture) == ("unknown", "unknown")
    assert (found.machine.cores, found.machine.cpu, found.machine.memory_bytes, found.free_gib) == (None,) * 4
    assert found.tools == {} and found.installed == ()
    assert moment == facts.Moment(None, None, None, {})


@pytest.mark.parametrize(
    ("digits", "version"), [("100300", "10.3.0"), ("8601", "8.6.1"), ("110401", "11.4.1"), ("x", None)]
)
def test_versions_of_trtexec(digits, version):
    assert facts.tensorrt_version(digits) == version


@pytest.mark.parametrize("shell", ["dash", "bash", "mksh", "busybox"])
def test_every_shell_runs_the_script(shell, tmp_path):
    version = tmp_path / "toy-phone" / "versions" / "1a2b3c4d5e6f"
    version.mkdir(parents=True)
    (version / "bundle.json").write_text("{}")
    (tmp_path / "toy-phone" / "current").symlink_to("versions/1a2b3c4d5e6f")
    program = [shutil.which(shell), *(["sh"] if shell == "busybox" else []), "-c", SCRIPT, "sh"]

    def told(*words: object) -> facts.Texts:
        done = subprocess.run([*program, *words], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        return facts.Texts.of(f"Welcome to the board, load = 3\n{done.stdout}")

    found, here = facts.inventory_of(told("inventory", tmp_path, sys.executable)), facts.machine(facts.here())
    assert found.machine == facts.machine_of(told("machine")) == here
    assert (here.system, found.python) == ("Linux", ".".join(map(str, sys.version_info[:3])))
    assert here.cores >= 1 and here.memory_bytes > 0 and found.free_gib >= 0
    assert {"tar", "sha256sum", "flock"} <= set(found.tools) and found.switch == "mv -T"
    assert "torch" in found.packages
    assert found.installed == (("toy-phone", "1a2b3c4d5e6f"),)
    assert facts.moment_of(told("moment")).machine_seconds > 0


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or os.cpu_count() < 2, reason="needs two cores to leave one out"
)
def test_cores_are_those_that_the_process_may_use():
    script = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    script += "from pipeline.devices import facts; print(facts.machine(facts.here()).cores)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_a_device_reads_as_this_machine_does(ssh_device):
    """The loopback device is this machine, so that both say the same."""
    there = devices.parse(ssh_device.url)
    assert facts.machine(there) == facts.machine(facts.here())
    before = facts.moment(facts.here()).machine_seconds
    assert facts.moment(there).machine_seconds >= before


def test_what_runs_on_a_jetson(target):
    found = inventory(JETSON)
    assert capabilities.can_install(found).yes
    assert capabilities.can_run(target("tensorrt"), found).how == "by trtexec, TensorRT 10.3.0"
    cpu = capabilities.can_run(target("executorch"), found)
    assert (cpu.yes, cpu.missing[0].reason) == (False, "Its Python 3.10.12 has no executorch.")
    assert 'python3 -m pip install "executorch>=' in cpu.missing[0].remedy
    assert (
        capabilities.can_run(target("coreml"), found).missing[0].reason
        == "Core ML runs on Apple's systems alone, and this is Linux."
    )
    with_it = replace(found, packages={"executorch": "1.5.1"})
    assert capabilities.can_run(target("executorch"), with_it).how == "by Python, executorch 1.5.1"


@pytest.mark.parametrize(
    ("python", "packages", "how", "reason"),
    [
        ("3.12.1", {"executorch": "1.4.0"}, "other version", "Its executorch is 1.4.0, and >=1.5,<1.6 is needed."),
        ("3.8.10", {}, "no runtime", "Its Python is 3.8.10, and executorch needs 3.10."),
        (None, {}, "no runtime", "There is no Python 3."),
    ],
)
def test_a_python_that_will_not_do(target, python, packages, how, reason):
    found = replace(inventory(JETSON), python=python, packages=packages)
    can = capabilities.can_run(target("executorch"), found)
    assert (can.yes, can.how, can.missing[0].reason) == (False, how, reason)


def test_an_old_jetson(target):
    found = replace(inventory(JETSON), trtexec="8.5.2")
    can = capabilities.can_run(target("tensorrt"), found)
    assert (can.yes, can.how) == (False, "too old")
    assert can.missing[0].reason == "Its trtexec is TensorRT 8.5.2, older than 10.3.0."
    assert capabilities.can_run(target("tensorrt"), replace(found, trtexec="10.13.3")).yes


def test_what_runs_on_a_phone(target):
    found = inventory(PHONE)
    assert capabilities.can_install(found).yes
    assert capabilities.can_run(target("executorch"), found).missing[0].remedy == "Build the runner; see below."


def test_an_old_board(target):
    """32 bits, and a BusyBox that was built small."""
    found = inventory(JETSON | {"uname -m": "armv7l", "tools": "tar /bin/tar", "switch": "", "trtexec": ""})
    missing = [one.reason for one in capabilities.can_install(found).missing]
    assert missing == [
        "There is no sha256sum, which verifies each file.",
        "There is no flock, which keeps two ships apart.",
        "There is no mv -T, which replaces the link `current` in one step.",
    ]
    assert (
        capabilities.can_run(target("executorch"), found).missing[0].reason
        == "There is no wheel of executorch for armv7l."
    )
    assert capabilities.can_run(target("tensorrt"), found).missing[0].reason == "There is no trtexec."


def test_what_runs_on_a_mac(target):
    found = inventory(MAC | {"python": "python 3.12.1\ncoremltools 9.0"})
    assert capabilities.can_run(target("coreml"), found).how == "by Python, coremltools 9.0"
    bare = capabilities.can_run(target("coreml"), replace(found, packages={}))
    assert bare.missing[0].reason == "Its Python has no coremltools."
