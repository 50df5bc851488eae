"""A device that answers garbage: one paragraph, within a bound of bytes, and no figure that cannot be is believed."""

import os
import shlex
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline import devices, exit_codes
from pipeline.backends.worker import remote, replies
from pipeline.backends.worker.process import opened
from pipeline.devices import facts, transfer, watch
from pipeline.errors import MESSAGE, DeviceError, InputError, StageError


@pytest.fixture
def liar(tmp_path, monkeypatch):
    """Makes an ssh whose every connection runs a shell line instead of what it is asked for."""

    def answer(line: str) -> devices.Device:
        ssh = tmp_path / "ssh"
        ssh.write_text(f"#!/bin/sh\n{line}\n")
        ssh.chmod(0o755)
        monkeypatch.setenv("REPNETS_SSH", shlex.quote(str(ssh)))
        return devices.parse("ssh://board")

    return answer


def asks(device: devices.Device):
    """What is asked of devices, each with a reply that is parsed."""
    yield lambda: facts.machine(device)
    yield lambda: facts.moment(device)
    yield lambda: facts.inventory(device, "/home", "python3")
    yield lambda: remote.python_versions(device, "python3", ["executorch"])
    yield lambda: remote.runner_versions(device, "/runner")
    yield lambda: transfer.pull(device, "/etc/passwd", Path("copied"))
    yield lambda: device.scratch().__enter__()
    yield lambda: device.home


@pytest.mark.parametrize(
    "line",
    [
        "head -c 3000 /dev/urandom",
        "echo '[]'",
        "echo '{\"python\": null}'",
        'echo \'{"python": "3.12", "executorch": "x"}\'',
        "echo file",
        "echo repnets-runner foo",
        "echo repnets-runner executorch=",
        "printf '%0100000d' 0 | tr 0 '['",
        "echo '@@@ /proc/loadavg'; echo 1.2.3.4",
        "true",
    ],
)
def test_garbage_is_an_error_or_an_unknown(liar, tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    for ask in asks(liar(line)):
        try:
            ask()
        except DeviceError as error:
            assert len(str(error)) < 2000


@pytest.mark.parametrize("line", ["exec yes", "exec yes >&2", "yes '{}' | head -c 200000000", "exec cat /dev/zero"])
def test_a_flood_is_cut_off(liar, tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    device = liar(line)
    with pytest.raises(DeviceError, match="board printed more than 16,000,000 bytes, which no reply has"):
        device.run("true")
    with pytest.raises(DeviceError, match=r"printed more than|prints `"), device.scratch():
        raise AssertionError("there is no such folder")


@contextmanager
def worker(device):
    """A process on a device that is not asked to copy or to prepare anything."""
    on = remote.Remote(device, "/place", {}, ("serve",), {})
    with opened("pipeline.backends.executorch", 1, on=on) as process:
        yield process


START = '"imported": [], "load_ms": 1.5, "first_inference_ms": 2.5, "peak_memory_bytes": 4096'


def changed(old, new):
    return f"{{{START.replace(old, new)}}}"


@pytest.mark.parametrize(
    "reply, request_, told",
    [
        ("not json", {"do": "start"}, "`not json`, which is no JSON"),
        ("[]", {"do": "start"}, "a list and no object"),
        ("[" * 100_000, {"do": "start"}, "which is no JSON"),
        ("{}", {"do": "start"}, "imported: field required"),
        ('{"doing": 3}', {"do": "start"}, "doing: input should be a valid string"),
        ('{"error": "StageError"}', {"do": "start"}, "message: field required"),
        (changed("1.5", "-1"), {"do": "start"}, "load_ms: input should be greater than or equal to"),
        (changed("1.5", '"NaN"'), {"do": "start"}, "load_ms: input should be a valid number"),
        (changed("2.5", "1e400"), {"do": "start"}, "first_inference_ms: input should be less than"),
        (changed("2.5", "NaN"), {"do": "start"}, "first_inference_ms: input should be"),
        (changed("4096", "-1"), {"do": "start"}, "peak_memory_bytes: input should be greater"),
        ('{"ms": [1, 2, -5]}', {"do": "block", "runs": 3}, "ms.2: input should be greater than or equal to"),
        ('{"ms": [1, 0, 5]}', {"do": "block", "runs": 3}, "ms.1: input should be greater than or equal to"),
        ('{"ms": [1, 2]}', {"do": "block", "runs": 3}, "2 times of 3 runs"),
        ('{"ms": "x"}', {"do": "block", "runs": 3}, "ms: input should be a valid array"),
        ('{"cpu_seconds": -1}', {"do": "usage"}, "cpu_seconds: input should be greater"),
        ('{"layers": [{"name": "a", "kind": "b", "ms": -1}]}', {"do": "profile", "runs": 1}, "layers.0.ms: input"),
    ],
)
def test_a_figure_that_cannot_be_is_refused(liar, tmp_path, reply, request_, told):
    (tmp_path / "reply").write_text(f"{reply}\n")
    device = liar(f"read -r request; cat {tmp_path}/reply; sleep 5")
    with pytest.raises(DeviceError, match="board answers what no such device does") as error, worker(device) as process:
        process.ask(**request_)
    assert told in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("kind", ["InputError", "GateError", "StageError", "ValueError", "x" * 300])
def test_an_error_of_a_device_is_one_of_the_device(liar, tmp_path, kind):
    """Also where it calls the file a wrong input, which exit code 2 stands for: the file was checked here."""
    (tmp_path / "reply").write_text(f'{{"error": "{kind}", "message": "{"m" * 100_000}"}}\n')
    device = liar(f"read -r request; cat {tmp_path}/reply; yes line | head -n 1000 >&2; sleep 5")
    with pytest.raises((DeviceError, StageError)) as error, worker(device) as process:
        process.ask("start", file="x")
    assert error.value.exit_code == 1 and len(exit_codes.said(error.value)) <= MESSAGE


def test_a_folder_that_unpacks_to_more_than_was_sent_is_refused(tmp_path):
    packed = tmp_path / "packed.tar"
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 1 << 40)
    subprocess.run(["tar", "-S", "-cf", packed, "-C", tmp_path, "sparse"], check=True)
    with pytest.raises(DeviceError, match="sparse is larger than what was sent"):
        transfer._unpack(devices.parse("ssh://board"), packed, tmp_path / "there")
    assert not (tmp_path / "there" / "sparse").exists()


def test_figures_that_can_be_are_taken(liar):
    device = liar(f"read -r request; echo '{{{START}}}'; read -r request; echo '{{\"cpu_seconds\": 0}}'; sleep 5")
    with worker(device) as process:
        assert process.ask("start", file="x")["load_ms"] == 1.5


@pytest.mark.parametrize("line", ["exec cat /dev/zero", 'exec yes \'{"doing": "a", "file": "b"}\' >&2'])
def test_a_worker_that_floods_is_ended(liar, line):
    told = "board (answers what no such device does: .* a line of more than|printed more than 16,000,000 bytes)"
    with pytest.raises(DeviceError, match=told), worker(liar(line)) as process:
        process.ask("start", file="x")


def test_a_reply_that_does_not_come_is_not_waited_for(tmp_path):
    with (tmp_path / "out").open("wb") as out:
        popen = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
        with watch.watched(popen, (out,), 0.2) as seen:
            assert popen.wait() == -9
    assert seen.cause == "time"


@pytest.mark.parametrize(
    "named, told", [("ssh '", "is no command"), ("   ", "names no command"), ("/etc/passwd", "cannot be run")]
)
def test_an_ssh_that_is_none_is_named(monkeypatch, named, told):
    monkeypatch.setenv("REPNETS_SSH", named)
    with pytest.raises((DeviceError, InputError), match=told):
        devices.parse("ssh://board").run("true")


def test_replies_of_every_request_that_goes_to_devices_have_a_kind():
    from pipeline.backends.worker import client
    from pipeline.benchmark import timing

    asked = set()
    for module in (client, timing):
        text = Path(module.__file__).read_text()
        asked |= {part.split('"')[1] for part in text.split("process.ask(")[1:]} | {"prepare", "usage"}
    assert asked - set(replies._KINDS) == {"open", "predict", "layers", "transfer", "time_files"}  # on this machine
