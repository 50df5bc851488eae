"""What has to be on a device for its Python, or a runner, to run files there."""

import json
import stat
import struct
import sys
from importlib import metadata

import pytest

from pipeline import devices
from pipeline.backends.worker import remote
from pipeline.errors import DeviceError

MODULE = "pipeline.backends.executorch.runtime"


@pytest.fixture
def device(ssh_device):
    return devices.parse(ssh_device.url)


@pytest.fixture
def program(ssh_device):
    """Puts a program on the device's PATH; gives its path."""

    def write(name, content):
        path = ssh_device.folder / "bin" / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(0o755)
        return str(path)

    return write


def refused(device, python, packages=("pytest",), made_by=None):
    with pytest.raises(DeviceError) as caught, remote.by_python(device, python, MODULE, packages, made_by or {}, []):
        pass
    return str(caught.value)


def test_what_is_brought_is_little():
    assert remote.closure("pipeline.backends.worker.server", MODULE) == [
        "pipeline", "pipeline.artifacts", "pipeline.artifacts.manifest", "pipeline.artifacts.samples",
        "pipeline.backends",
        "pipeline.backends.executorch", "pipeline.backends.executorch.flatbuffer", "pipeline.backends.executorch.pte",
        "pipeline.backends.executorch.runtime", "pipeline.backends.runtime", "pipeline.backends.worker",
        "pipeline.backends.worker.server",
        "pipeline.errors", "pipeline.lifetime", "pipeline.quiet", "pipeline.regular_file",
    ]  # fmt: skip


def test_files_and_modules_lie_in_the_scratch_folder_and_go_with_it(device, ssh_device, tmp_path):
    (tmp_path / "fused.pte").write_text("content")
    with remote.by_python(device, sys.executable, MODULE, ["pytest"], {}, [tmp_path / "fused.pte"]) as on:
        assert device.output(["cat", on.names[tmp_path / "fused.pte"]]) == "content"
        script = f"import {MODULE} as module; print(module.__file__)"
        told = device.output(["env", f"PYTHONPATH={on.place}/code", sys.executable, "-c", script])
        assert told == f"{on.place}/code/pipeline/backends/executorch/runtime.py\n"
        assert on.versions["pytest"] == metadata.version("pytest")
    assert (ssh_device.left(), list(ssh_device.tmp.iterdir())) == ([], [])


def test_no_python(device):
    said = refused(device, "no-such-python")
    assert f"{device.name} has no program `no-such-python`, or cannot run it" in said
    assert "Set `device_python:` in target.yaml to the Python there that has pytest, or `runner:`" in said


def test_a_runtime_that_is_missing(device):
    said = refused(device, sys.executable, ["pytest", "no-such-runtime"], {"no-such-runtime": "1.5.1"})
    assert f"the Python `{sys.executable}` on {device.name} has no no-such-runtime" in said
    assert f"Install it there: {sys.executable} -m pip install pytest no-such-runtime==1.5.1." in said


def test_a_runtime_that_is_too_old(device):
    said = refused(device, sys.executable, ["pytest"], {"pytest": "999.1.0"})
    assert (
        f"{device.name} has pytest {metadata.version('pytest')}, which is older than the 999.1.0 that the files" in said
    )
    assert f"{sys.executable} -m pip install pytest==999.1.0" in said


def test_a_python_that_is_too_old(device, program):
    """A stand-in that answers as an older Python does."""
    old = program("old", f"#!/bin/sh\necho '{json.dumps({'python': '3.8.10', 'pytest': '9.0'})}'\n")
    assert f"`{old}` on {device.name} is Python 3.8.10, and 3.10 or later is needed" in refused(device, old)
    older = program("older", "#!/bin/sh\necho 'ImportError: cannot import name metadata' >&2\nexit 1\n")
    assert "cannot say which packages it has: ImportError: cannot import name metadata" in refused(device, older)


def no_runner(device, runner):
    with pytest.raises(DeviceError) as caught, remote.by_runner(device, runner, []):
        pass
    return str(caught.value)


def test_a_runner_that_is_not_there(device):
    said = no_runner(device, "/nowhere/runner")
    assert (
        f"the runner /nowhere/runner on {device.name} is not there. Build it there from pipeline/devices/runner.cpp"
        in said
    )


def test_a_runner_for_another_architecture(device, program):
    """An ELF file for a machine that nobody has."""
    rest = struct.pack("<HHIQQQIHHHHHH", 2, 0xFEED, 1, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0)
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + rest
    said = no_runner(device, program("runner", header))
    assert "is built for another architecture than the device's" in said
    assert device.output(["uname", "-m"]).strip() in said


def test_a_program_that_is_no_runner(device, program):
    said = no_runner(device, program("runner", "#!/bin/sh\necho hello\n"))
    assert "does not say that it is a runner (exit code 0: hello)" in said


def test_a_program_that_may_not_be_run(device, ssh_device, program):
    path = program("runner", "#!/bin/sh\n")
    (ssh_device.folder / "bin" / "runner").chmod(stat.S_IRUSR)
    assert "does not say that it is a runner (exit code 126" in no_runner(device, path)
