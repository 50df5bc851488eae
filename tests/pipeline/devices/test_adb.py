"""adb: the real one's words for what is wrong, and what its stand-in is asked."""

import os
import shutil
import socket
import subprocess

import pytest

from pipeline import devices
from pipeline.devices import transfer
from pipeline.errors import DeviceError


@pytest.fixture
def real_adb(monkeypatch):
    """The real program, with a server of its own that ends with the test."""
    if shutil.which("adb") is None:
        pytest.skip("adb is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(free.getsockname()[1]))
    yield
    subprocess.run(["adb", "kill-server"], check=True, capture_output=True)


def test_a_device_that_is_not_plugged_in(real_adb):
    with pytest.raises(DeviceError, match=r"does not reach the device NOPE: device 'NOPE' not found\. Switch on USB"):
        devices.parse("adb:NOPE").run("true")


def test_a_copy_to_a_device_that_is_not_plugged_in(real_adb, tmp_path):
    (tmp_path / "file").write_text("text")
    with pytest.raises(DeviceError, match=r"adb does not reach the device NOPE"):
        transfer.push(devices.parse("adb:NOPE"), tmp_path / "file", "/data/local/tmp/file")


def test_without_adb_it_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match=r"`adb` is not on PATH, and the device X is reached through it\. Install"):
        devices.parse("adb:X").run("true")


@pytest.mark.parametrize(
    ("code", "said", "is_cut", "told"),
    [
        (
            1,
            "error: device unauthorized.\nThis adb server's keys",
            False,
            "has not allowed this",
        ),
        (1, "error: device offline", False, "does not reach the device X: device offline"),
        (1, "adb: error: failed to read copy response: EOF", True, "was cut"),
        (1, "error: closed", True, "was cut"),
    ],
)
def test_what_adb_says_is_understood(code, said, is_cut, told):
    """Texts as its source has them; no device was at hand to say them."""
    error = devices.parse("adb:X").explain(code, said)
    assert (error.is_cut, told in str(error)) == (is_cut, True)


@pytest.mark.parametrize(
    "said", ["ls: /nowhere: No such file or directory", "error: trtexec is not on PATH", "error: closed early"]
)
def test_a_command_that_fails_there_is_not_taken_for_the_links_failure(said):
    assert devices.parse("adb:X").explain(1, said) is None


def test_files_go_by_adbs_own_copy(adb_stand_in, tmp_path):
    (tmp_path / "file").write_text("text")
    device = devices.parse("adb:STANDIN")
    with device.scratch() as place:
        transfer.push(device, tmp_path / "file", f"{place}/file")
        transfer.pull(device, f"{place}/file", tmp_path / "back")
    asked = (adb_stand_in / "asked").read_text().split("\n")
    assert "-s STANDIN push" in asked and "-s STANDIN pull" in asked
    assert os.listdir(adb_stand_in / "data" / "local" / "tmp") == []
