"""A toy network with randomised statistics, as the stages leave it on disk; and modules of the user's own."""

import getpass
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

SIZE = 32


@dataclass(frozen=True)
class Artifacts:
    """Paths of one network's artifacts."""

    folder: Path

    @property
    def split(self) -> Path:
        return self.folder / "split.json"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "toy" / "checkpoint.safetensors"

    @property
    def fused(self) -> Path:
        return self.folder / "toy" / "fused.pt2"

    @property
    def report(self) -> Path:
        return self.folder / "toy" / "fuse.json"

    @property
    def quantized(self) -> Path:
        """Made by the fixture of that name."""
        return self.folder / "toy" / "quantized.pt2"

    @property
    def verify(self) -> Path:
        return self.folder / "toy" / "verify.json"


def _randomised(model):
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.3)
            torch.nn.init.normal_(module.running_mean, std=0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


def write_checkpoint(path: Path, split: Path, seed: int = 0) -> None:
    """An untrained toy network whose batch norms are far from their defaults, as a checkpoint."""
    import torch

    import repnets
    from pipeline.data.splits import open_split
    from pipeline.models import checkpoints

    torch.manual_seed(seed)
    model = _randomised(repnets.create_model("toy", num_classes=10))
    data = open_split(split)
    header = {
        "arch": "toy",
        "num_classes": 10,
        "preprocessing": asdict(data.preprocessing(SIZE, "bilinear")),
        "data_digest": data.digest,
        "epoch": 0,
        "weights": "raw",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.write(path, model.state_dict(), header)


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory) -> Artifacts:
    """A toy network, fused and verified by the stages themselves. Do not change it: copy what you damage."""
    from pipeline.config.project import Verify
    from pipeline.config.stages import NoSettings, SplitSettings
    from pipeline.stages import reparameterize, split, verify

    made = Artifacts(tmp_path_factory.mktemp("artifacts"))
    patch = pytest.MonkeyPatch()
    patch.setenv("REPNETS_STORE", str(made.folder / "store"))
    try:
        split.run(SplitSettings(name="digits", root=None, val_fraction=0.2, split_seed=0), output=made.split)
        write_checkpoint(made.checkpoint, made.split)
        reparameterize.run(
            NoSettings(), checkpoint=made.checkpoint, split=made.split, fused=made.fused, report=made.report
        )
        verify.run(Verify(), checkpoint=made.checkpoint, split=made.split, fused=made.fused, output=made.verify)
    finally:
        patch.undo()
    return made


@pytest.fixture(scope="session")
def quantized(artifacts) -> Path:
    """The toy network in int8, made by the stage itself. It is untrained, so that no accuracy is held."""
    from pipeline.config.stages import QuantizeSettings
    from pipeline.stages import quantize

    patch = pytest.MonkeyPatch()
    patch.setenv("REPNETS_STORE", str(artifacts.folder / "store"))
    try:
        quantize.run(
            QuantizeSettings(calibration_images=128, max_accuracy_drop=1.0),
            fused=artifacts.fused, verify=artifacts.verify, split=artifacts.split,
            quantized=artifacts.quantized, report=artifacts.quantized.with_name("quantize.json"),
        )  # fmt: skip
    finally:
        patch.undo()
    return artifacts.quantized


@pytest.fixture(scope="session")
def run_check(artifacts):
    """Checks the files that export wrote into a folder, by default against the toy's artifacts; returns check.json."""
    from pipeline import backends
    from pipeline.config.stages import CheckSettings
    from pipeline.config.targets import Check
    from pipeline.stages import check

    def run(folder, backend, against=artifacts, fused=None, quantized=None, **gates):
        forms = json.loads((folder / "manifest.json").read_text())["forms"]
        check.run(
            CheckSettings(backend=backend, check=Check(**gates)),
            manifest=folder / "manifest.json",
            files=[folder / name for name in backends.file_names(backend, list(forms))],
            fused=fused or against.fused,
            verify=against.verify,
            split=against.split,
            output=folder / "check.json",
            quantized=quantized,
        )
        return json.loads((folder / "check.json").read_text())

    return run


@pytest.fixture(scope="session")
def exported(artifacts, run_check, tmp_path_factory, request):
    """A function: the folder of the toy, exported for a backend and checked; each once."""
    from pipeline.config.stages import ExportSettings
    from pipeline.stages import export

    folders = {}

    def folder_of(backend, precision="fp32", form="fused", batch=1, **options):
        key = backend, precision, batch, str(options)
        if key not in folders:
            folder = folders[key] = tmp_path_factory.mktemp("targets") / "phone" / "toy"
            folder.mkdir(parents=True)
            int8 = request.getfixturevalue("quantized") if form == "quantized" else None
            export.run(
                ExportSettings(target="phone", model="toy", backend=backend, precision=precision, forms=(form,),
                               batch=batch, image_size=None, options=options),
                checkpoint=artifacts.checkpoint, fused=artifacts.fused, verify=artifacts.verify,
                manifest=folder / "manifest.json", quantized=int8,
            )  # fmt: skip
            run_check(folder, backend, quantized=int8, max_accuracy_drop=1.0)
        return folders[key]

    return folder_of


@pytest.fixture
def pack(artifacts, tmp_path):
    """Packs a folder of exported files; returns the opened bundle."""
    from pipeline import backends
    from pipeline.config.project import Bundle
    from pipeline.config.stages import BundleSettings
    from pipeline.deploy import bundle_file
    from pipeline.stages import bundle

    def run(folder, options=None, dist=tmp_path / "dist", **settings):
        written = json.loads((folder / "manifest.json").read_text())
        form = next(iter(written["forms"]))
        dist.mkdir(exist_ok=True)
        bundle.run(
            BundleSettings(backend=written["backend"], options=options or {}, bundle=Bundle(**settings)),
            manifest=folder / "manifest.json",
            check=folder / "check.json",
            files=[folder / name for name in backends.file_names(written["backend"], [form])],
            fused=artifacts.fused,
            quantized=artifacts.quantized if form == "quantized" else None,
            split=artifacts.split,
            dist=dist,
            output=dist / "bundle.json",
        )
        return bundle_file.open_bundle(dist / json.loads((dist / "bundle.json").read_text())["bundle"])

    return run


@pytest.fixture(scope="session")
def believed():
    """Makes the manifest believe a file as it is now, so that the other gates have to find the damage."""
    from pipeline.artifacts import digests

    def rewrite(folder, name):
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["forms"][Path(name).stem]["files"][name]["sha256"] = digests.digest(folder / name)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return rewrite


@pytest.fixture(scope="session")
def randomise():
    """Moves every batch norm of a model away from its defaults, which hide errors; returns the model."""
    return _randomised


@pytest.fixture(autouse=True)
def _own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("REPNETS_STORE", str(tmp_path / "store"))


@pytest.fixture
def own_modules(tmp_path, monkeypatch):
    """The folder of a run, empty; a function that writes the user's own modules into it, by path without `.py`."""
    from pipeline.artifacts import digests, source_files

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(files: dict[str, str]) -> None:
        for cached in (
            digests.code_digest,
            digests._read_code,
            source_files.file_of,
            source_files.version,
            source_files._top,
        ):
            cached.cache_clear()
        for name, module in list(sys.modules.items()):
            if str(tmp_path) in (getattr(module, "__file__", None) or ""):
                del sys.modules[name]
        for name, text in files.items():
            path = tmp_path / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))

    yield write
    write({})


@dataclass
class SshDevice:
    """A real sshd on the loopback address: a Linux device behind `ssh`.

    Attributes:
        url: what `pipeline.devices.parse` and `device:` take. ``ssh://board`` is the same by an alias.
        folder: all that it has: ``home`` (its $HOME), ``tmp`` (its $TMPDIR), ``bin`` (first of its $PATH);
            ``known_hosts``, ``key``, the client's ``config``, ``sshd_config``.
        port: of the loopback address.
        sshd: the server's own process.
    """

    url: str
    folder: Path
    port: int
    sshd: subprocess.Popen

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def tmp(self) -> Path:
        return self.folder / "tmp"

    def cut(self) -> int:
        """Kill the server's side of every connection, as a pulled cable would; how many there were."""
        children = _descendants(self.sshd.pid)
        sessions = [pid for pid, name in children if name.startswith("sshd")]
        for pid in sessions:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(sessions)

    def runs(self, name: str) -> bool:
        """Whether a process of this name runs on the device now."""
        return name in [found for _, found in _descendants(self.sshd.pid)]

    def cut_while(self, seen: Callable[[], bool]) -> Callable[[], int]:
        """Cut the link as soon as something is seen; gives a function that waits for that: how many connections."""
        found = []

        def watch() -> None:
            deadline = time.monotonic() + 120
            while not seen() and time.monotonic() < deadline:
                pass
            found.append(self.cut())

        thread = threading.Thread(target=watch)
        thread.start()
        return lambda: thread.join() or found[0]

    def left(self) -> list[str]:
        """What still runs on the device half a minute after all should have ended, by name; empty once nothing does."""
        deadline = time.monotonic() + 30
        while (found := [name for _, name in _descendants(self.sshd.pid)]) and time.monotonic() < deadline:
            time.sleep(0.01)
        return found

    def set_up(self, *lines: str) -> None:
        """Start sshd anew with these lines before its own ones, which the first of each key wins over."""
        self.stop()
        own = (self.folder / "sshd_config").read_text()
        (self.folder / "sshd_config").write_text("".join(f"{line}\n" for line in lines) + own)
        self.sshd = _sshd(self.folder)

    def stop(self) -> None:
        self.cut()
        self.sshd.kill()
        self.sshd.wait()


def _descendants(pid: int) -> list[tuple[int, str]]:
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            name, rest = (folder / "stat").read_text().partition("(")[2].rsplit(")", 1)
            parents[int(folder.name)] = (int(rest.split()[1]), name)
    found, waiting = [], [pid]
    while waiting:
        parent = waiting.pop()
        children = [(child, name) for child, (above, name) in parents.items() if above == parent]
        found += children
        waiting += [child for child, _ in children]
    return found


def _sshd(folder: Path) -> subprocess.Popen:
    log = folder / "log"
    log.write_text("")
    started = subprocess.Popen(["/usr/sbin/sshd", "-D", "-E", str(log), "-f", str(folder / "sshd_config")])
    while "Server listening" not in log.read_text():
        assert started.poll() is None, f"sshd did not start: {log.read_text()}"
        time.sleep(0.01)
    return started


@pytest.fixture
def ssh_device(tmp_path, monkeypatch):
    """A Linux device behind ssh, with its own host key, user key, known_hosts and client configuration.

    The client finds them through $REPNETS_SSH, which is set here, and which commands that a test starts inherit.
    It needs Debian's openssh-server; sshd runs as this user.
    """
    if not Path("/usr/sbin/sshd").exists():
        pytest.skip("needs an ssh server: apt-get install openssh-server")
    folder = tmp_path / "device"
    for name in ("home", "tmp", "bin"):
        (folder / name).mkdir(parents=True)
    for name in ("host_key", "key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(folder / name)], check=True
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "authorized_keys").write_text((folder / "key.pub").read_text())
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host_key.pub').read_text()}")
    (folder / "config").write_text(
        f"Host board\n HostName 127.0.0.1\n Port {port}\n"
        f"Host *\n User {getpass.getuser()}\n IdentityFile {folder}/key\n IdentitiesOnly yes\n IdentityAgent none\n"
        f" UserKnownHostsFile {folder}/known_hosts\n GlobalKnownHostsFile /dev/null\n"
    )
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host_key\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nPasswordAuthentication no\n"
        f"KbdInteractiveAuthentication no\nMaxStartups 100\nPermitRootLogin yes\n"
        f"SetEnv HOME={folder}/home TMPDIR={folder}/tmp PATH={folder}/bin:/usr/bin:/bin\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd locks itself up before a login
    monkeypatch.setenv("REPNETS_SSH", f"ssh -F {folder}/config")
    device = SshDevice(f"ssh://127.0.0.1:{port}", folder, port, _sshd(folder))
    yield device
    device.stop()


@pytest.fixture
def adb_device(tmp_path, monkeypatch):
    """A stand-in for adb, first on PATH, that maps push, pull and shell to a folder; gives it. Its serial: STANDIN."""
    folder = tmp_path / "phone"
    (folder / "data" / "local" / "tmp").mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "bin" / "adb").write_text(
        f"""#!{sys.executable}
import os, shutil, subprocess, sys
root = {str(folder)!r}
there = lambda text: text.replace("/data/local/tmp", root + "/data/local/tmp") if root not in text else text
with open(root + "/asked", "a") as log:
    log.write(" ".join(sys.argv[1:4]) + "\\n")
_, s, serial, what, *words = sys.argv
if (s, serial) != ("-s", "STANDIN"):
    sys.exit(f"adb: device '{{serial}}' not found")
if what == "shell":
    assert words[0] == "-T"
    os.environ.pop("TMPDIR", None)
    os.environ["TMPDIR"] = root + "/data/local/tmp"
    os.execvp("sh", ["sh", "-c", there(words[1])])
source, target = words if what == "pull" else (words[0], there(words[1]))
shutil.copyfile(there(source) if what == "pull" else source, target)
print(f"{{source}}: 1 file {{what}}ed")
"""
    )
    (folder / "bin" / "adb").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}/bin:{os.environ['PATH']}")
    return folder


TRTEXEC_STAND_IN = """#!{python}
# A stand-in for trtexec: it writes the files that trtexec writes, and says nothing of TensorRT.
import json, os, pathlib, sys
told = dict(option.lstrip("-").partition("=")[::2] for option in sys.argv[1:])
with open({log!r}, "a") as log:
    log.write(json.dumps(told) + "\\n")
print("&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec")
if "saveEngine" in told:
    assert os.path.exists(told["onnx"]), "the ONNX file was brought"
    header = b"ftrt" + bytes(12) + (28).to_bytes(8, "little") + bytes([10, 3, 0, 30])
    pathlib.Path(told["saveEngine"]).write_bytes(header)
    cache = pathlib.Path(told["timingCacheFile"])
    cache.write_text(cache.read_text() + "again" if cache.exists() else "once")
if "loadEngine" in told:
    assert os.path.exists(told["loadEngine"]), "the engine was built"
run = {{"computeMs": 0.8, "h2dMs": 0.02, "d2hMs": 0.01, "latencyMs": 0.83}}
if "exportTimes" in told:
    pathlib.Path(told["exportTimes"]).write_text(json.dumps([run] * 5))
if "exportProfile" in told:
    pathlib.Path(told["exportProfile"]).write_text(json.dumps([{{"count": 3}}, {{"name": "conv", "medianMs": 0.3}}]))
    layers = {{"Layers": [{{"Name": "conv", "LayerType": "CaskConvolution"}}]}}
    pathlib.Path(told["exportLayerInfo"]).write_text(json.dumps(layers))
print("[01/01/2026-00:00:00] [E] Error[2]: no kernel image" if {code} and "saveEngine" in told else "")
print("&&&& PASSED TensorRT.trtexec [TensorRT v100300] # trtexec")
sys.exit({code} if "saveEngine" in told else 0)
"""


@pytest.fixture
def trtexec(ssh_device):
    """Puts the stand-in on the device's PATH; gives a function for what it was told."""

    def make(code=0):
        log = ssh_device.folder / "calls"
        program = ssh_device.folder / "bin" / "trtexec"
        program.write_text(TRTEXEC_STAND_IN.format(python=sys.executable, log=str(log), code=code))
        program.chmod(0o755)
        return lambda: [json.loads(line) for line in log.read_text().splitlines()]

    return make
