"""What holds for every test, and the fixtures that tests of several rooms share."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.stages import jobs

for name, value in jobs.ENVIRONMENT.items():  # as in a stage; it has to be set before torch is imported
    os.environ.setdefault(name, value)

pytest_plugins = ("tests.fixtures.devices", "tests.fixtures.small_networks")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """A function of a name and of what fills a folder: that folder, filled once for all processes of a test run.

    The first process that asks fills it, with a store of its own in it as $REPNETS_STORE; others wait for that.
    Do not change what is in it: take a copy.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made_once"

    def folder_of(name: str, fill: Callable[[Path], None]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        shared.mkdir(exist_ok=True)
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                with pytest.MonkeyPatch.context() as patch:
                    patch.setenv("REPNETS_STORE", str(folder / "store"))
                    fill(folder)
                done.touch()
        return folder

    return folder_of
