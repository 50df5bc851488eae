"""What a device does whatever its link, on this machine and behind a real sshd."""

import os
import shutil
from pathlib import Path

import pytest

from pipeline import devices
from pipeline.devices import transfer
from pipeline.errors import DeviceError

APPLETS = "sh cat head mktemp tar sha256sum rm mkdir mv chmod du wc printf ls sleep touch"


@pytest.fixture(params=["local", "ssh", "busybox", "mksh", "adb stand-in"])
def device(request, tmp_path, monkeypatch):
    """This machine; a Linux board; this machine with BusyBox's commands alone, or Android's shell; adb's stand-in."""
    if request.param == "ssh":
        return devices.parse(request.getfixturevalue("ssh_device").url)
    if request.param == "adb stand-in":
        request.getfixturevalue("adb_stand_in")
        return devices.parse("adb:STANDIN")
    (tmp_path / "device" / "tmp").mkdir(parents=True)
    if request.param != "local":
        program = shutil.which(request.param)
        if program is None:
            pytest.skip(f"{request.param} is not installed")
        (tmp_path / "bin").mkdir()
        for name in APPLETS.split() if request.param == "busybox" else ["sh"]:
            (tmp_path / "bin" / name).symlink_to(program)
        others = "" if request.param == "busybox" else f":{os.environ['PATH']}"
        monkeypatch.setenv("PATH", f"{tmp_path}/bin{others}")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "device" / "tmp"))
    monkeypatch.setenv("HOME", str(tmp_path / "device" / "home"))
    return devices.parse("local")


def test_a_command_runs_to_its_end(device):
    done = device.run('read -r word; echo "$word"; echo oops >&2; exit 3', input=b"hello\n")
    assert (done.returncode, done.stdout, done.stderr) == (3, "hello\n", "oops\n")


def test_words_are_quoted_for_the_devices_shell(device):
    words = ["a b", "$HOME", "it's", '"', "\\", "*", "ä"]
    assert device.run(["printf", "%s|", *words]).stdout == "|".join(words) + "|"


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_a_command_sees_the_end_of_its_input(device, size):
    assert device.run("wc -c", input=b"x" * size).stdout.split() == [str(size)]


def test_a_command_need_not_read_its_input(device):
    assert device.run("exit 7", input=b"x" * 3_000_000).returncode == 7


@pytest.mark.parametrize(("command", "code"), [("exit 255", 254), ("kill -s SEGV $$", 139)])
def test_exit_codes_are_never_taken_for_the_links(device, command, code):
    assert device.run(command).returncode == code


def test_a_command_that_does_not_end_is_ended(device):
    with pytest.raises(DeviceError, match=r"did not finish within 1 s, and was told to stop"):
        device.run(["sleep", "1000"], timeout=1)


def test_a_served_process_answers_until_its_input_ends(device):
    with device.start(["cat"]) as served:
        for word in ("one\n", "two\n"):
            served.stdin.write(word)
            served.stdin.flush()
            assert served.stdout.readline() == word
        served.stdin.close()
        assert served.stdout.read() == ""


def test_a_served_process_that_ends_by_itself_gives_its_code(device):
    with device.start("read -r line; exit 5") as served:
        served.stdin.write("go\n")
        served.stdin.flush()
        assert served.wait(30) == 5


def test_a_file_comes_and_goes(device, tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "a b").write_bytes(content)
    with device.scratch() as place:
        transfer.push(device, tmp_path / "a b", f"{place}/deep/it's")
        assert device.output(f"ls {place}/deep").split("\n")[:-1] == ["it's"]
        transfer.pull(device, f"{place}/deep/it's", tmp_path / "back" / "file")
    assert (tmp_path / "back" / "file").read_bytes() == content


def test_a_folder_comes_and_goes(device, tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "x").write_text("x")
    (tmp_path / "in" / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (tmp_path / "in" / "run.sh").chmod(0o755)
    with device.scratch() as place:
        transfer.push(device, tmp_path / "in", f"{place}/out")
        assert device.output(f"{place}/out/run.sh") == "ran\n"
        transfer.pull(device, f"{place}/out", tmp_path / "back")
    assert sorted(file.name for file in (tmp_path / "back").rglob("*")) == ["run.sh", "sub", "x"]


def test_a_link_in_a_folder_of_a_device_is_not_taken(device, tmp_path):
    with device.scratch() as place:
        device.output(f"mkdir {place}/out")
        Path(place, "out", "link").symlink_to("/etc/passwd")
        with pytest.raises(DeviceError, match=r"folder that cannot be unpacked: .*link is no file or folder"):
            transfer.pull(device, f"{place}/out", tmp_path / "back")
    assert not (tmp_path / "back" / "link").exists()


def test_a_scratch_folder_is_the_owners_alone_and_goes(device):
    with pytest.raises(ZeroDivisionError), device.scratch() as place:
        assert device.output(f"ls -ld {place}").startswith("drwx------")
        device.output(f"mkdir {place}/sub && touch {place}/sub/file")
        1 / 0  # noqa: B018
    assert device.run(["ls", "-d", place]).returncode != 0


def test_what_a_device_without_power_left_behind_goes(device):
    left = device.output('mkdir "$TMPDIR/repnets-scratch-999999999-abc" && echo "$TMPDIR"').strip()
    with device.scratch():
        pass
    assert device.output(f"ls {left}") == ""


def test_home_is_where_installations_go(device, tmp_path):
    places = ("device/home/.local/share/repnets", "phone/data/local/tmp/repnets")
    assert device.home in [str(tmp_path / place) for place in places]


def test_a_command_that_has_to_succeed(device):
    with pytest.raises(DeviceError, match=r"`ls /nowhere` ended with exit code [12]; it said: ls: .*/nowhere"):
        device.output(["ls", "/nowhere"])


def test_nothing_is_not_there(device, tmp_path):
    with pytest.raises(DeviceError, match=r"has no /nowhere"):
        transfer.pull(device, "/nowhere", tmp_path / "x")
