"""Runs and their stages end together, locks of dead runs are released, temporary folders do not stay."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from pipeline import exit_codes, lifetime, temporary

PROJECT = Path(lifetime.__file__).resolve().parents[1]
LOCK = Path(".snakemake/locks/0.output.lock")


def start(text: str, folder: Path, **environment: str) -> subprocess.Popen:
    """Start a program that prints a line when it is ready; wait for that line."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(text)], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONPATH": str(PROJECT), **environment},
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


STAGE = """
    import time
    from pipeline import lifetime, temporary
    lifetime.end_with_run()
    with temporary.folder() as name:
        print("ready", flush=True)
        time.sleep(60)
"""
RUN = """
    import subprocess, sys, time
    from pathlib import Path
    from pipeline import lifetime
    Path(".snakemake/locks").mkdir(parents=True)
    Path(".snakemake/locks/0.output.lock").write_text("a")
    lifetime.begin_run()
    stage = subprocess.Popen([sys.executable, "-c", sys.argv[1] if sys.argv[1:] else STAGE], stdout=subprocess.PIPE)
    stage.stdout.readline()
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        sys.exit(1)
""".replace("else STAGE", f"else {textwrap.dedent(STAGE)!r}")


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stage_ends_with_its_run_and_leaves_nothing(tmp_path, monkeypatch, by):
    (tmp_path / "tmp").mkdir()
    run = start(RUN, tmp_path, TMPDIR=str(tmp_path / "tmp"))
    assert len(list((tmp_path / "tmp").iterdir())) == 1
    monkeypatch.chdir(tmp_path)
    lifetime.release_locks_of_dead_runs()
    assert LOCK.exists()  # it lives
    run.send_signal(by)
    _, said = run.communicate(timeout=30)  # the stage has its stderr open until it ends
    assert run.returncode == (-9 if by == signal.SIGKILL else 1)
    assert said == "the run that this stage belongs to has ended, and so does the stage\n"
    assert list((tmp_path / "tmp").iterdir()) == []
    lifetime.release_locks_of_dead_runs()
    assert LOCK.exists() is (by != signal.SIGKILL)  # Snakemake itself removes that of a run that was not killed
    assert list(Path(".snakemake/repnets").iterdir()) == []


def test_a_lock_that_no_dead_run_can_have_made_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    LOCK.parent.mkdir(parents=True)
    LOCK.touch()
    lifetime.release_locks_of_dead_runs()
    assert LOCK.exists()
    Path(".snakemake/repnets").mkdir()
    Path(".snakemake/repnets/1").touch()
    os.utime(LOCK, (time.time() + 60,) * 2)  # of a run that began since
    lifetime.release_locks_of_dead_runs()
    assert LOCK.exists()


def test_the_folder_of_a_killed_process_is_removed_by_the_next(tmp_path, monkeypatch):
    killed, alive = (start(STAGE, tmp_path, TMPDIR=str(tmp_path)) for _ in range(2))
    killed.kill()
    killed.communicate()
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "repnets-mine").mkdir()
    with temporary.folder() as name:
        assert len(list(tmp_path.iterdir())) == 3
        assert Path(name).is_dir()
    alive.terminate()
    alive.communicate(timeout=30)
    assert [path.name for path in tmp_path.iterdir()] == ["repnets-mine"]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own way, of Linux")
def test_a_worker_does_not_outlive_its_stage(tmp_path):
    stage = start(
        """
        import subprocess, sys, time
        text = "import time; from pipeline import lifetime; lifetime.end_with_parent(); print(1, flush=True); "
        text += "time.sleep(60)"
        worker = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE)
        worker.stdout.readline()
        print("ready", flush=True)
        time.sleep(60)
        """,
        tmp_path,
    )  # fmt: skip
    stage.kill()
    stage.communicate(timeout=30)  # the worker has its stderr open until it ends


def test_ctrl_c_is_one_line(capsys):
    def act():
        raise KeyboardInterrupt

    assert exit_codes.answered(act, debug=False) == 130
    assert capsys.readouterr().err == "interrupted\n"
