"""`repnets ship` and `repnets devices`: what they print, what they refuse before they touch a device, exit codes."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.deploy import app_layout, bundle_file
from pipeline.errors import InputError
from tests.fixtures.documents import bundle_manifest

OK = 'print(\'{"status": "ok", "max_error": 1e-7, "tolerance": 1e-4, "images": 3, "runtime": "none"}\')'
NAME = "toy-phone"


def run(*words: object) -> int:
    return main.main([str(word) for word in words])


def make(folder: Path, content: str = "1", selftest: str = OK, backend: str = "executorch") -> Path:
    file = {"executorch": "fused.pte", "coreml": "fused.mlpackage", "tensorrt": "fused.onnx"}[backend]
    members = {
        f"{file}/model.bin" if backend == "coreml" else file: content.encode(),
        "labels.txt": b"a\nb\n",
        "README.md": b"# read me\n",
        "integration/Classifier.kt": b"class Classifier\n",
        "integration/Classifier.swift": b"final class Classifier {}\n",
        "selftest.py": selftest.encode(),
    }
    run = ["python3", "selftest.py"]
    return bundle_file.write(folder, members, bundle_manifest(target="phone", backend=backend, file=file, run=run))


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """Of this machine as a device: where installs go."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home/.local/share/repnets"


def version(tar: Path) -> str:
    return tar.stem.rpartition("-")[2]


def test_shipped_listed_and_taken_back(tmp_path, home, capsys):
    first, second = make(tmp_path, "1"), make(tmp_path, "2")
    size = first.stat().st_size / 1e6
    assert run("ship", first, "local", "--python", sys.executable) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{first.name}: whole, 6 files, {size:.1f} MB",
        "local: copied, and every digest is right",
        "local: self-test ok, max error 1e-07, tolerance 0.0001, images 3, none",
        f"{NAME} on local is now {version(first)}",
        f"{home}/{NAME}/current",
    ]
    assert run("ship", second, "local", "--python", sys.executable) == 0
    assert capsys.readouterr().out.splitlines()[3:] == [
        f"{NAME} on local is now {version(second)}, before: {version(first)}",
        f"{home}/{NAME}/current",
        f"to go back to {version(first)}: repnets ship {NAME} local --rollback",
    ]
    assert run("devices", "local", "--json", tmp_path / "installed.json") == 0
    head, current, before, _, where = capsys.readouterr().out.splitlines()
    assert head.split() == ["installed", "version", "since", "by", "self-test", "signed", "by"]
    assert current.split()[:3] == [NAME, version(second), "current"] and current.split()[5:] == ["ok", "-"]
    assert before.split()[:3] == [NAME, version(first), "before"]
    assert where == f"{home}/<installed>/current"
    (told,) = json.loads((tmp_path / "installed.json").read_text())["installed"]
    assert (told["name"], told["current"]) == (NAME, version(second))

    assert run("ship", first, "local", "--rollback") == 0  # the file names what is meant, and need not be there
    assert f"{NAME} on local went back to {version(first)}, before: {version(second)}" in capsys.readouterr().out
    assert run("devices", "local") == 0
    assert [line.split()[1:4] for line in capsys.readouterr().out.splitlines()[1:3]] == [
        [version(first), "current", before.split()[3]],
        [version(second), "rolled", "back"],
    ]
    assert run("ship", NAME, "local", "--rollback") == 2
    assert f"no version of {NAME} from before {version(first)}" in capsys.readouterr().err


def test_nothing_is_installed(home, capsys):
    assert run("devices", "local") == 0
    assert capsys.readouterr().out == "nothing is installed on local\n"


def flipped(tar: Path) -> None:
    content = bytearray(tar.read_bytes())
    content[content.rindex(b"class Classifier")] ^= 1
    tar.write_bytes(content)


def climbing(tar: Path) -> None:
    _append(tar, tarfile.TarInfo("../../.ssh/authorized_keys"), b"ssh-ed25519 AAAA")


def linking(tar: Path) -> None:
    info = tarfile.TarInfo("model")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    _append(tar, info)


def device_node(tar: Path) -> None:
    info = tarfile.TarInfo("disk")
    info.type = tarfile.BLKTYPE
    _append(tar, info)


def cut_short(tar: Path) -> None:
    os.truncate(tar, 5000)


def _append(tar: Path, info: tarfile.TarInfo, content: bytes = b"") -> None:
    info.size = len(content)
    with tarfile.open(tar, "a") as opened:
        opened.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (flipped, "`integration/Classifier.swift` does not have the sha256 that bundle.json names"),
        (climbing, "`../../.ssh/authorized_keys`, which is no path below the bundle's own folder"),
        (linking, "`model`, a symbolic link; a bundle holds plain files alone"),
        (device_node, "`disk`, a device node; a bundle holds plain files alone"),
        (cut_short, "It was damaged or changed on its way"),
    ],
)
def test_a_bundle_that_is_not_what_it_was_never_reaches_the_device(tmp_path, home, capsys, harm, message):
    harm(tar := make(tmp_path))
    assert run("ship", tar, "local", "--python", sys.executable) == 2
    said = capsys.readouterr()
    assert message in said.err and said.out == "" and said.err.count("\n") == 1
    assert not home.exists()
    assert run("ship", tar, "--layout", tmp_path / "app") == 2
    assert not (tmp_path / "app").exists()


@pytest.fixture
def keys(tmp_path):
    """Two key pairs, the first of whom is an allowed signer."""
    for name in ("anna", "eve"):
        told = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(tmp_path / name)]
        subprocess.run(told, check=True)
    (tmp_path / "allowed").write_text(f"anna@example.org {(tmp_path / 'anna.pub').read_text()}")
    return tmp_path


def test_a_signature_is_required(tmp_path, home, keys, capsys):
    tar = make(tmp_path / "dist")
    required = ("--require-signature", keys / "allowed")
    assert run("ship", tar, "local", *required) == 2
    assert f"{tar} is not signed, and a signature is required" in capsys.readouterr().err
    assert run("ship", tar, "--layout", tmp_path / "app", *required) == 2
    assert "is not signed" in capsys.readouterr().err and not (tmp_path / "app").exists()

    bundle_file.sign(tar, keys / "eve")
    assert run("ship", tar, "local", *required) == 2
    assert f"{tar}: its signature is not one of anybody by a key in {keys / 'allowed'}" in capsys.readouterr().err

    bundle_file.sign(tar, keys / "anna")
    other = make(tmp_path / "other", "2")
    os.replace(bundle_file.signature_of(tar), bundle_file.signature_of(other))
    assert run("ship", other, "local", *required) == 2
    assert "its signature is not one of anna@example.org" in capsys.readouterr().err
    assert not home.exists()

    bundle_file.sign(tar, keys / "anna")
    assert run("ship", tar, "local", *required, "--python", sys.executable) == 0
    assert "6 files, 0.0 MB, signed by anna@example.org\n" in capsys.readouterr().out
    assert run("devices", "local") == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("ok         anna@example.org")


def test_a_self_test_that_fails_is_exit_code_1(tmp_path, home, capsys):
    tar = make(tmp_path, selftest="import sys; sys.exit(1)")
    assert run("ship", tar, "local", "--python", sys.executable) == 1
    assert "the self-test failed on local, exit code 1: nothing." in capsys.readouterr().err
    assert run("ship", tar, "local", "--no-selftest") == 0
    assert "local: self-test left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.tar", "local"], "none.tar does not exist"),
        (["none.tar"], "name a DEVICE to ship to"),
        (["none.tar", "local", "--layout", "app"], "it goes with no DEVICE"),
        (["none.tar", "pi"], "`pi` names no device"),
        (["toy-none", "local", "--rollback"], "toy-none is not installed on local; there is: nothing"),
    ],
)
def test_a_mistake_is_said_in_one_paragraph(home, capsys, words, message):
    assert run("ship", *words) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1


def test_a_bundle_for_xcode(tmp_path, capsys):
    tar = make(tmp_path, backend="coreml")
    assert run("ship", tar, "--layout", tmp_path / "deep" / "app") == 0
    said = capsys.readouterr().out
    assert f"drag {tmp_path}/deep/app/xcode into the project" in said and "fused.mlmodelc" in said
    app = tmp_path / "deep" / "app"
    assert (app / "xcode/fused.mlpackage/model.bin").read_text() == "1"
    assert sorted(path.name for path in (app / "xcode").iterdir()) == [
        "Classifier.swift", "fused.mlpackage", "labels.txt",
    ]  # fmt: skip
    assert (app / "bundle/README.md").is_file() and not (app / "android").exists()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["app"]  # nothing half made beside it


def test_a_bundle_for_an_android_app(tmp_path, capsys):
    (tmp_path / "app").mkdir()
    assert run("ship", make(tmp_path), "--layout", tmp_path / "app") == 0
    assert f"copy {tmp_path}/app/android/assets into src/main" in capsys.readouterr().out
    assert (tmp_path / "app/android/assets/fused.pte").read_text() == "1"
    assert (tmp_path / "app/android/assets/labels.txt").is_file()
    assert (tmp_path / "app/android/Classifier.kt").is_file()
    assert (tmp_path / "app/xcode/fused.pte").is_file()


def test_what_no_app_takes(tmp_path):
    with pytest.raises(InputError, match=r"is for tensorrt, which no phone's app runs.*repnets ship .*\.tar ssh://"):
        app_layout.lay_out(make(tmp_path, backend="tensorrt"), tmp_path / "app")


def test_a_layout_replaces_nothing(tmp_path):
    (tmp_path / "app").mkdir()
    (tmp_path / "app/own.txt").write_text("mine")
    with pytest.raises(InputError, match=r"app is there already and is no empty folder\. Name another, or remove it"):
        app_layout.lay_out(make(tmp_path), tmp_path / "app")
    assert [path.name for path in (tmp_path / "app").iterdir()] == ["own.txt"]


@pytest.mark.parametrize("command", ["ship", "devices", "doctor"])
def test_help_teaches(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        run(command, "--help")
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "examples:" in said and f"repnets {command} " in said and "ssh://user@host:port" in said
    assert max(map(len, said.splitlines())) <= 120


@pytest.mark.slow
def test_a_real_bundle_on_a_real_device(checked_toy, pack, ssh_device, capsys):
    """The network that a stage exported, packed as the workflow packs it, tested and run by ExecuTorch there."""
    tar = pack(checked_toy("executorch")).path
    capsys.readouterr()
    assert run("ship", tar, ssh_device.url, "--python", sys.executable) == 0
    said = capsys.readouterr().out
    assert "self-test ok, max error" in said and "ExecuTorch" in said
    assert run("devices", ssh_device.url) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == [NAME, version(tar), "current"]
    file = ssh_device.home / ".local/share/repnets" / NAME / "current" / "fused.pte"
    assert file.read_bytes() == (checked_toy("executorch") / "fused.pte").read_bytes()

    second = again(tar, **{"README.md": b"A second version.\n"})
    assert run("ship", second, ssh_device.url, "--python", sys.executable) == 0
    assert run("ship", NAME, ssh_device.url, "--rollback") == 0
    assert (
        f"{NAME} on {ssh_device.url} went back to {version(tar)}, before: {version(second)}" in capsys.readouterr().out
    )

    weights = bytearray(file.read_bytes())
    weights[len(weights) // 2 : len(weights) // 2 + 4000] = bytes(4000)
    wrong = again(tar, **{"fused.pte": bytes(weights)})  # its digests are right, and its numbers are not
    assert run("ship", wrong, ssh_device.url, "--python", sys.executable) == 1
    said = capsys.readouterr().err
    assert "the self-test failed on" in said and "tolerance" in said
    assert f"Of {NAME}, {version(tar)} stays current there." in said
    assert file.read_bytes() == (checked_toy("executorch") / "fused.pte").read_bytes()


def again(tar: Path, **changed: bytes) -> Path:
    """The same bundle with other content in some files, packed as the first was."""
    opened = bundle_file.open_bundle(tar)
    members = {name: opened.read(name) for name in opened.manifest.files} | changed
    sha256 = hashlib.sha256(members[opened.manifest.file]).hexdigest()
    checked = opened.manifest.checked
    checked = replace(checked, subjects={**checked.subjects, opened.manifest.file: sha256})
    return bundle_file.write(tar.parent, members, replace(opened.manifest, checked=checked))
