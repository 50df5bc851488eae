"""What can go wrong between here and a device, each for real: what is said, and that nothing is left there."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import devices
from pipeline.devices import transfer
from pipeline.errors import DeviceError, InputError

PROJECT = Path(devices.__file__).parents[2]


def said_by(act):
    with pytest.raises(DeviceError) as caught:
        act()
    return str(caught.value)


def test_a_host_that_does_not_listen(ssh_device):
    ssh_device.stop()
    said = said_by(lambda: devices.parse(ssh_device.url).run("true"))
    assert "127.0.0.1 cannot be reached: ssh: connect to host 127.0.0.1 port" in said and "Connection refused" in said
    assert said.endswith(f"try by hand: ssh -F {ssh_device.folder}/config -p {ssh_device.port} 127.0.0.1")


def test_a_host_that_has_no_address(ssh_device):
    said = said_by(lambda: devices.parse("ssh://no.such.host.invalid").run("true"))
    assert "no.such.host.invalid cannot be reached: ssh: Could not resolve hostname" in said


def test_a_host_that_takes_the_connection_and_says_nothing(ssh_device, monkeypatch):
    monkeypatch.setenv("REPNETS_SSH", f"ssh -F {ssh_device.folder}/config -o ConnectTimeout=1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        said = said_by(lambda: devices.parse(f"ssh://127.0.0.1:{silent.getsockname()[1]}").run("true"))
    assert "127.0.0.1 cannot be reached: Connection" in said and "timed out" in said


def test_a_refused_key(ssh_device):
    (ssh_device.folder / "authorized_keys").write_text("")
    said = said_by(lambda: devices.parse(ssh_device.url).run("true"))
    assert "127.0.0.1 accepts none of your keys. Let it know your key: ssh-copy-id -p" in said


def test_a_host_that_asks_for_a_password_is_not_waited_for(ssh_device):
    (ssh_device.folder / "authorized_keys").write_text("")
    ssh_device.set_up("PasswordAuthentication yes")
    said = said_by(lambda: devices.parse(ssh_device.url).run("true"))
    assert "accepts none of your keys and asks for a password, which is never typed here" in said
    assert f"ssh-copy-id -p {ssh_device.port} 127.0.0.1" in said


def test_an_unknown_host_key_is_refused_with_the_way_to_accept_it(ssh_device):
    (ssh_device.folder / "known_hosts").write_text("")
    said = said_by(lambda: devices.parse(ssh_device.url).run("true"))
    assert "the host key of 127.0.0.1 is not in your known_hosts" in said and "nothing was sent to it" in said
    assert said.endswith(f"accept it: ssh -F {ssh_device.folder}/config -p {ssh_device.port} 127.0.0.1")
    assert (ssh_device.folder / "known_hosts").read_text() == "", "nothing was accepted here"


def test_a_changed_host_key_is_refused(ssh_device):
    other = (ssh_device.folder / "key.pub").read_text()
    (ssh_device.folder / "known_hosts").write_text(f"[127.0.0.1]:{ssh_device.port} {other}")
    said = said_by(lambda: devices.parse(ssh_device.url).run("true"))
    assert "has another host key than the one that your known_hosts holds" in said
    assert f"ssh-keygen -R '[127.0.0.1]:{ssh_device.port}'" in said


def test_an_alias_of_the_users_configuration_is_taken(ssh_device):
    known = f"[127.0.0.1]:{ssh_device.port}"
    assert known in (ssh_device.folder / "known_hosts").read_text()
    assert devices.parse("ssh://board").run("echo there").stdout == "there\n"


def test_without_a_client_it_is_said(monkeypatch):
    monkeypatch.setenv("REPNETS_SSH", "no-such-ssh")
    said = said_by(lambda: devices.parse("ssh://board").run("true"))
    assert "`no-such-ssh` is not on PATH, and board is reached through it. Install OpenSSH's client" in said


def full(ssh_device, blocks):
    """A device whose files cannot grow beyond some blocks of 512 bytes."""
    ssh_device.set_up(f'ForceCommand ulimit -f {blocks}; eval "$SSH_ORIGINAL_COMMAND"')
    return devices.parse(ssh_device.url)


def test_a_full_device(ssh_device, tmp_path):
    device = full(ssh_device, 100)
    (tmp_path / "large").write_bytes(b"x" * 1_000_000)
    with device.scratch() as place:
        said = said_by(lambda: transfer.push(device, tmp_path / "large", f"{place}/large"))
        assert f"{ssh_device.url} has no room left" in said and "Make room there" in said
        assert device.output(["ls", place]) == "", "the part that fitted is gone"
    assert (ssh_device.left(), list(ssh_device.tmp.iterdir())) == ([], [])


def test_a_full_device_and_a_folder(ssh_device, tmp_path):
    device = full(ssh_device, 100)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "large").write_bytes(b"x" * 1_000_000)
    with device.scratch() as place:
        said = said_by(lambda: transfer.push(device, tmp_path / "folder", f"{place}/folder"))
    assert "has no room left" in said
    assert (ssh_device.left(), list(ssh_device.tmp.iterdir())) == ([], [])


def test_a_shell_that_greets_is_told(ssh_device):
    ssh_device.set_up('ForceCommand echo Welcome to this board; eval "$SSH_ORIGINAL_COMMAND"')
    with pytest.raises(DeviceError, match=r"the shell on ssh://.* prints `Welcome to this board` before it runs"):  # noqa: SIM117
        with devices.parse(ssh_device.url).scratch():
            pass
    assert (ssh_device.left(), list(ssh_device.tmp.iterdir())) == ([], [])


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(transfer, "TRIES_AFTER_SECONDS", (0.0, 0.0))


def test_a_link_that_is_cut_in_a_copy_is_taken_up_again(ssh_device, tmp_path, at_once):
    device, content = devices.parse(ssh_device.url), os.urandom(1 << 20) * 64
    (tmp_path / "large").write_bytes(content)
    part = ssh_device.home / "large.part"
    cut = ssh_device.cut_while(part.exists)
    transfer.push(device, tmp_path / "large", str(ssh_device.home / "large"))
    assert cut() >= 1, "the link was cut"
    assert (ssh_device.home / "large").read_bytes() == content
    assert (ssh_device.left(), part.exists()) == ([], False)


def test_a_temporary_folder_that_went_with_its_link_is_not_made_anew(ssh_device, tmp_path, at_once):
    device = devices.parse(ssh_device.url)
    (tmp_path / "large").write_bytes(os.urandom(1 << 20) * 64)
    cut = ssh_device.cut_while(lambda: any(ssh_device.tmp.rglob("large.part")))

    def copy():
        with device.scratch() as place:
            transfer.push(device, tmp_path / "large", f"{place}/large")

    said = said_by(copy)
    assert cut() >= 2 and "the link to" in said and "was cut" in said
    assert (ssh_device.left(), list(ssh_device.tmp.iterdir())) == ([], [])


def test_a_link_that_is_cut_under_a_command(ssh_device):
    device = devices.parse(ssh_device.url)
    mark = ssh_device.home / "mark"
    cut = ssh_device.cut_while(mark.exists)
    said = said_by(lambda: device.run(f"touch {mark}; trap '' TERM HUP; sleep 1000"))
    assert cut() >= 1
    assert "the link to 127.0.0.1 was cut" in said and "What ran there for this ended with it" in said
    assert ssh_device.left() == []


def test_where_this_host_is_killed_nothing_is_left_there(ssh_device):
    script = f"""
from pipeline import devices
device = devices.parse({ssh_device.url!r})
with device.scratch() as place:
    served = device.start("trap '' TERM HUP; touch " + place + "/file; echo ready; sleep 1000")
    print(served.stdout.readline(), flush=True)
    served.wait()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=PROJECT) as host:
        assert host.stdout.readline() == "ready\n"
        assert list(ssh_device.tmp.glob("repnets-scratch-*/file"))
        host.send_signal(signal.SIGKILL)
    assert (ssh_device.left(), list(ssh_device.tmp.iterdir())) == ([], [])


def test_a_link_that_flips_a_bit_is_found_out(ssh_device, tmp_path):
    """The device's `cat` is a stand-in that writes other bytes than it reads."""
    (ssh_device.folder / "bin" / "cat").write_text("#!/bin/sh\nexec tr x y\n")
    (ssh_device.folder / "bin" / "cat").chmod(0o755)
    (tmp_path / "file").write_text("xxx")
    said = said_by(
        lambda: transfer.push(devices.parse(ssh_device.url), tmp_path / "file", str(ssh_device.home / "file"))
    )
    assert f"what arrived on {ssh_device.url} is not what was sent: the sha256 of {ssh_device.home}/file.part" in said
    assert list(ssh_device.home.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "names no device"),
        ("jetson", "names no device. Give `local`, `ssh://user@host:port`"),
        ("ssh://", "is no address of a device"),
        ("ssh://host:port", "is no address of a device"),
        ("ssh://host/path", "is no address of a device"),
        ("ssh://-oProxyCommand=x", "is no address of a device"),
        ("ssh://user@-x", "is no address of a device"),
        ("adb:", "names no device"),
        ("adb:-s", "names no device"),
        ("ssh://me:secret@host", "holds a password, which is neither used nor kept"),
    ],
)
def test_what_is_no_device_is_refused(text, why):
    with pytest.raises(InputError, match=why) as caught:
        devices.parse(text)
    assert "secret" not in str(caught.value)


def test_addresses_are_taken_apart():
    assert devices.parse("ssh://Me@Host.Local:2222").link == devices.ssh.Ssh("Host.Local", "Me", 2222)
    assert devices.parse("ssh://[::1]:22").link == devices.ssh.Ssh("::1", None, 22)
    assert devices.parse("ssh://JetSon").link == devices.ssh.Ssh("JetSon")
    assert devices.parse("adb:192.168.1.4:5555").link == devices.adb.Adb("192.168.1.4:5555")
