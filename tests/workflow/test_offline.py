"""No command leaves this machine: every address that a command or its jobs connect to is noted by the kernel."""

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.fixtures.connections import NOT_HERE, as_at_home, can_trace, outward, traced

PROJECT = Path(__file__).resolve().parents[2]
REPNETS = (sys.executable, "-m", "pipeline.cli.main")
SNAKEMAKE = (sys.executable, "-m", "snakemake")
CONNECTS = """
import socket
address = {address!r}
try:
    socket.socket({family}, socket.SOCK_DGRAM).{how}
except OSError:
    pass
"""
V4, V6 = "socket.AF_INET", "socket.AF_INET6"

pytestmark = pytest.mark.skipif(not can_trace(), reason=NOT_HERE)


def watched(folder: Path, *command: str, **environment: str) -> list[str]:
    """What a command connects to outside of this machine. It must succeed."""
    log = folder / "connections.log"
    done = subprocess.run(
        traced(log, *command), cwd=folder, env={**as_at_home(), "PYTHONPATH": str(PROJECT), **environment},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return outward(log)


@pytest.mark.parametrize(
    ("family", "address", "leaves"),
    [
        (V4, ("192.0.2.1", 80), True),
        (V6, ("2001:db8::1", 443), True),
        (V4, ("127.0.0.53", 53), True),
        (V4, ("127.0.0.1", 80), False),
        (V6, ("::1", 80), False),
        ("socket.AF_UNIX", "/nowhere", False),
    ],
)
@pytest.mark.parametrize("how", ["connect(address)", "sendto(b'', address)"])
def test_an_attempt_is_seen_though_its_error_is_swallowed(tmp_path, family, address, leaves, how):
    """Addresses that are kept for documentation, from a process that a process started."""
    if how.startswith("sendto") and leaves and address[1] != 53:
        how = "sendmsg([], [], socket.MSG_DONTROUTE, address)"  # stays on this machine's own links
    script = CONNECTS.format(family=family, address=address, how=how)
    starts = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {script!r}], check=True)"
    assert bool(watched(tmp_path, sys.executable, "-c", starts)) == leaves


@pytest.mark.parametrize("words", [("--help",), ("models",), ("doctor",)])
def test_commands_that_tell(tmp_path, words):
    shutil.copytree(
        PROJECT / "targets", tmp_path / "targets", ignore=shutil.ignore_patterns("*.json", "toy", "repvgg*")
    )
    shutil.copy(PROJECT / "config.yaml", tmp_path)
    assert watched(tmp_path, *REPNETS, *words) == []


def test_the_converter_of_openvino(tmp_path):
    """Its telemetry reports conversions unless a user forbids it; and it writes to the user's home."""
    script = """
        import torch
        from pathlib import Path
        from pipeline.artifacts.manifest import ExportSpec, Preprocessing
        from pipeline.backends.openvino import export

        program = torch.export.export(torch.nn.Conv2d(3, 4, 3).eval(), (torch.zeros(1, 3, 8, 8),))
        preprocessing = Preprocessing(8, (0.5,) * 3, (0.5,) * 3, ())
        export.export(program, [Path("net.xml")], ExportSpec("fp32", (1, 3, 8, 8), preprocessing))
    """
    home = tmp_path / "home"
    home.mkdir()
    assert watched(tmp_path, sys.executable, "-c", textwrap.dedent(script), HOME=str(home)) == []
    assert (tmp_path / "net.xml").is_file()
    assert list(home.iterdir()) == []


@pytest.mark.slow
def test_the_whole_workflow(built):
    """`snakemake all`: split, train, fuse, verify, export, check, bench and report."""
    log = built.folder.parent / "connections.log"
    assert "AF_UNIX" in log.read_text()  # so something was noted
    assert outward(log) == []


@pytest.mark.slow
def test_commands_on_what_was_built(clone):
    """A dry run; and a checkpoint of the user's own, adopted, fused and verified; files checked and timed by name."""
    own = clone.folder / "mine.pth"
    environment = {key: clone.environment[key] for key in ("REPNETS_STORE", "PYTHONPATH")}

    def connected(*command: str) -> list[str]:
        return watched(clone.folder, *command, **environment)

    assert connected(*SNAKEMAKE, "--dry-run", "all") == []
    assert connected(*REPNETS, "convert", "artifacts/toy/checkpoint.safetensors", str(own), "--layout", "repnets") == []
    config = clone.folder / "config.yaml"
    config.write_text(config.read_text().replace("{toy: }", f"{{mine: {{arch: toy, checkpoint: {own}}}}}"))
    assert connected(*SNAKEMAKE, "artifacts/mine/verify.json") == []
    file, program = "targets/executorch/toy/fused.pte", "artifacts/toy/fused.pt2"
    assert connected(*REPNETS, "check", file, "--against", program) == []
    assert connected(*REPNETS, "bench", file, "--max-seconds", "0.1", "--min-runs", "5") == []
