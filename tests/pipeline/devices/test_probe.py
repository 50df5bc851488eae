"""What a machine says of itself by one script; and what follows for targets."""

import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from pipeline.cli import capabilities
from pipeline.config.targets import Target
from pipeline.devices import probe

JETSON = """\
Welcome to the board, load = 3
system=Linux
release=5.15.148-tegra
architecture=aarch64
model=NVIDIA Jetson Orin Nano Developer Kit
distribution=Ubuntu 22.04.5 LTS
jetson=# R36 (release), REVISION: 4.3
cores=6
memory_kib=7802648
free_kib=52428800
tool.python3=/usr/bin/python3
tool.g++=/usr/bin/g++
tool.tar=/usr/bin/tar
tool.sha256sum=/usr/bin/sha256sum
tool.flock=/usr/bin/flock
tool.trtexec=/usr/src/tensorrt/bin/trtexec
switch=mv -T
gcc=11.4.0
trtexec=100300
python=3.10.12
package.tensorrt=10.3.0
installed=/home/anna/.local/share/repnets/toy-tensorrt/versions/1a2b3c4d5e6f
"""
PHONE = """\
system=Linux
release=5.10.198-android13-4
architecture=aarch64
model=Pixel 7
android=14
abi=arm64-v8a
cores=8
memory_kib=7701268
free_kib=31457280
tool.tar=/system/bin/tar
tool.sha256sum=/system/bin/sha256sum
tool.flock=/system/bin/flock
switch=toybox's ln
switch=mv -T
"""


@pytest.fixture
def target():
    def of(backend: str) -> Target:
        return Target(name="mine", backend=backend, precision="fp32")

    return of


def test_what_is_read():
    found = probe.read(JETSON)
    assert (found.architecture, found.cores, found.memory_gib, found.free_gib) == ("aarch64", 6, 7.4, 50.0)
    assert (found.described, found.trtexec, found.python, found.gcc) == (
        "Ubuntu 22.04.5 LTS",
        "10.3.0",
        "3.10.12",
        "11.4.0",
    )
    assert dict(found.packages) == {"tensorrt": "10.3.0"}
    assert found.installed == (("toy-tensorrt", "1a2b3c4d5e6f"),)
    phone = probe.read(PHONE)
    assert (phone.is_android, phone.described, phone.architecture) == (True, "Android 14", "arm64-v8a")
    assert (phone.switch, phone.python, phone.trtexec) == ("toybox's ln", None, None)


def test_nothing_that_is_said_is_nothing_that_is_known():
    found = probe.read("")
    assert (found.system, found.architecture, found.cores, found.free_gib) == ("unknown", "unknown", None, None)
    assert found.tools == {} and found.installed == ()


@pytest.mark.parametrize(
    ("digits", "version"), [("100300", "10.3.0"), ("8601", "8.6.1"), ("110401", "11.4.1"), ("x", None)]
)
def test_versions_of_trtexec(digits, version):
    assert probe.read(f"trtexec={digits}").trtexec == version


@pytest.mark.parametrize("shell", ["dash", "bash", "mksh", "busybox"])
def test_every_shell_runs_the_script(shell, tmp_path):
    version = tmp_path / "toy-phone" / "versions" / "1a2b3c4d5e6f"
    version.mkdir(parents=True)
    (version / "bundle.json").write_text("{}")
    (tmp_path / "toy-phone" / "current").symlink_to("versions/1a2b3c4d5e6f")
    words = [
        shutil.which(shell),
        *(["sh"] if shell == "busybox" else []),
        "-c",
        probe.SCRIPT,
        "sh",
        tmp_path,
        sys.executable,
    ]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    found = probe.read(done.stdout)
    assert (found.system, found.python) == ("Linux", ".".join(map(str, sys.version_info[:3])))
    assert found.cores >= 1 and found.memory_gib > 0 and found.free_gib >= 0
    assert {"tar", "sha256sum", "flock"} <= set(found.tools) and found.switch == "mv -T"
    assert "torch" in found.packages
    assert found.installed == (("toy-phone", "1a2b3c4d5e6f"),)


def test_a_jetson(target):
    found = probe.read(JETSON)
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
    found = replace(probe.read(JETSON), python=python, packages=packages)
    can = capabilities.can_run(target("executorch"), found)
    assert (can.yes, can.how, can.missing[0].reason) == (False, how, reason)


def test_an_old_jetson(target):
    found = replace(probe.read(JETSON), trtexec="8.5.2")
    can = capabilities.can_run(target("tensorrt"), found)
    assert (can.yes, can.how) == (False, "too old")
    assert can.missing[0].reason == "Its trtexec is TensorRT 8.5.2, older than 10.3.0."
    assert capabilities.can_run(target("tensorrt"), replace(found, trtexec="10.13.3")).yes


def test_a_phone(target):
    found = probe.read(PHONE)
    assert capabilities.can_install(found).yes
    assert capabilities.can_run(target("executorch"), found).missing[0].remedy == "Build the runner; see below."


def test_an_old_board(target):
    """32 bits, and a BusyBox that was built small."""
    found = replace(probe.read(JETSON), architecture="armv7l", tools={"tar": "/bin/tar"}, switch=None, trtexec=None)
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


def test_a_mac(target):
    found = replace(probe.read(JETSON), system="Darwin", packages={"coremltools": "9.0"})
    assert capabilities.can_run(target("coreml"), found).how == "by Python, coremltools 9.0"
    bare = capabilities.can_run(target("coreml"), replace(found, packages={}))
    assert bare.missing[0].reason == "Its Python has no coremltools."
