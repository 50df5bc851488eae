"""A store that several users and runs read: modes, hits without a lock, and what is said of a missing permission."""

import fcntl
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from pipeline.artifacts import store
from pipeline.errors import StageError

PROJECT = Path(store.__file__).resolve().parents[2]
BOB, TEAM = 61002, 61000
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to act as a second user")


def put(place: Path) -> bool:
    """Run a stage whose outputs are written with private modes; whether they came out of the store."""

    def build(places, _scratch):
        for name in ("weights", "program"):
            places[name].touch(mode=0o700 if name == "program" else 0o600)
            places[name].write_text(name)
        places["pack"].mkdir(mode=0o700)
        (places["pack"] / "inner").touch(mode=0o600)

    outputs = {"weights": place / "weights.bin", "program": place / "run.sh", "pack": place / "pack"}
    return store.cached("shout", settings={}, inputs={}, outputs=outputs, code=(), packages=(), build=build)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def shared(monkeypatch):
    """A folder that every user can write to, with a store of this user's in it."""
    with tempfile.TemporaryDirectory(prefix="repnets-test-") as name:
        place = Path(name)
        place.chmod(0o777)
        monkeypatch.setenv("REPNETS_STORE", str(place / "store"))
        yield place


def second_user(shared: Path, act: str, **environment: str) -> subprocess.CompletedProcess:
    """Run lines of Python as another user of the group; every file that is opened for writing is printed."""
    script = textwrap.dedent(f"""
        import os, sys
        from pathlib import Path
        from pipeline.artifacts import store
        from pipeline.errors import StageError
        def watch(event, arguments):
            if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                print("wrote", arguments[0])
        os.setgroups([{TEAM}])
        os.setresgid({TEAM}, {TEAM}, {TEAM})
        os.setresuid({BOB}, {BOB}, {BOB})  # only now: Python itself may lie where others cannot read
        sys.addaudithook(watch)
        def take(build=None):
            names = {{"weights": "weights.bin", "program": "run.sh", "pack": "pack"}}
            outputs = {{name: Path("bobs") / file for name, file in names.items()}}
            try:
                return store.cached("shout", settings={{}}, inputs={{}}, outputs=outputs, code=(), packages=(),
                                    build=build)
            except StageError as error:
                sys.exit(str(error))
    """) + textwrap.dedent(act)
    return subprocess.run(
        [sys.executable, "-c", script], cwd=shared, capture_output=True, text=True, timeout=60,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT), "HOME": str(shared),
             "REPNETS_STORE": str(shared / "store"), "REPNETS_STORE_TRUST": "group", **environment},
    )  # fmt: skip


def give_to_the_team(place: Path) -> None:
    for path in (place, *place.rglob("*")):
        os.chown(path, -1, TEAM)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_modes_are_of_the_umask_and_the_group_reads_the_store(tmp_path, umask):
    before = os.umask(umask)
    try:
        assert put(tmp_path / "a") is False
        assert put(tmp_path / "b") is True
        (tmp_path / "plain").touch()
    finally:
        os.umask(before)
    for folder in (tmp_path / "a", tmp_path / "b"):
        assert mode(folder / "weights.bin") == mode(folder / "pack/inner") == mode(tmp_path / "plain")
        assert mode(folder / "run.sh") == mode(folder / "pack") == 0o777 & ~umask
    (entry,) = (tmp_path / "store/objects").iterdir()
    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    folders = [tmp_path / "store", *(path for path in (tmp_path / "store").rglob("*") if path.is_dir())]
    assert len(files) >= 5 and entry in folders
    for path in files:
        kind = 0o777 if path.name == "run.sh" else 0o666
        assert mode(path) == (kind & ~umask & ~0o022) | 0o040
    assert {mode(path) for path in folders} == {(0o777 & ~umask & ~0o022) | 0o050}


def test_a_hit_waits_for_no_lock_and_changes_nothing(tmp_path):
    put(tmp_path / "a")
    (lock,) = (tmp_path / "store/locks").iterdir()

    def seen() -> dict[str, tuple[int, int]]:
        return {
            str(path): (path.lstat().st_mtime_ns, path.lstat().st_ctime_ns) for path in (tmp_path / "store").rglob("*")
        }

    before = seen()
    with lock.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # a run that builds the same, or one that hangs
        assert put(tmp_path / "b") is True
    assert seen() == before


@needs_root
def test_a_second_user_who_may_only_read_gets_hits(shared):
    put(shared / "mine")
    give_to_the_team(shared / "store")
    done = second_user(shared, "print('hit' if take() else 'built')")
    assert done.stdout.splitlines()[-1] == "hit", done.stderr
    wrote = [line for line in done.stdout.splitlines() if line.startswith("wrote")]
    assert wrote and not any(str(shared / "store") in line for line in wrote)
    assert (shared / "bobs/weights.bin").read_text() == "weights"
    assert os.access(shared / "bobs/run.sh", os.X_OK)


@needs_root
def test_a_second_user_notices_damage(shared):
    """He cannot mend it, and is told whose permission it takes."""
    put(shared / "mine")
    give_to_the_team(shared / "store")
    (weights,) = shared.glob("store/objects/*/weights/*")
    weights.write_text("damaged")
    done = second_user(shared, "take()")
    assert done.returncode == 1
    assert "Permission denied while writing" in done.stderr
    assert not (shared / "bobs").exists()
    assert weights.read_text() == "damaged"


@needs_root
def test_a_missing_permission_is_said_as_one(shared):
    put(shared / "mine")
    give_to_the_team(shared / "store")
    done = second_user(shared, "take(lambda places, _: None)", REPNETS_STORE_TRUST="owner")
    place = shared / "store"
    (entry,) = (place / "objects").iterdir()
    assert done.stderr.splitlines() == [
        f"shout: Permission denied while writing {place}/work/{entry.name}: {place}/work is of `root`, and this is the "
        f"user {BOB}. Nothing was lost: what stood there before still does. Get the permission there (chmod, or a "
        f"group that shares it), or set REPNETS_STORE (now {place}) to a folder that can be written, and run again."
    ]


@needs_root
@pytest.mark.parametrize("name", ["entry.json", "weights", "weights/weights.bin"])
def test_an_entry_that_cannot_be_read_is_named(shared, name):
    put(shared / "mine")
    give_to_the_team(shared / "store")
    (entry,) = (shared / "store/objects").iterdir()
    (entry / name).chmod(0)
    done = second_user(shared, "take()")
    assert done.returncode == 1
    assert f"Permission denied while reading {entry / name}: {entry / name} is of `root`" in done.stderr
    assert "Make room" not in done.stderr


@needs_root
def test_an_input_that_cannot_be_read_is_named(shared):
    (shared / "input").touch(mode=0o600)
    done = second_user(
        shared,
        """
        try:
            store.cached("shout", settings={}, inputs={"input": Path("input").absolute()}, outputs={}, code=(),
                         packages=(), build=None)
        except StageError as error:
            sys.exit(str(error))
        """,
    )
    assert f"Permission denied while reading {shared}/input" in done.stderr
    assert "REPNETS_STORE" not in done.stderr


@needs_root
def test_a_folder_of_results_that_cannot_be_written_is_named_without_the_store(shared):
    put(shared / "mine")
    give_to_the_team(shared / "store")
    done = second_user(shared, "os.chdir('mine'); take()")
    assert f"Permission denied while writing bobs: {shared}/mine is of `root`" in done.stderr
    assert "or name another place, and run again" in done.stderr
    assert "REPNETS_STORE" not in done.stderr


def test_what_is_read_while_it_is_thrown_away_and_built_again_is_whole(tmp_path):
    """One process has an entry thrown away and built again and again; what another one takes out of it is whole."""
    names = [f"{number:02}" for number in range(40)]
    script = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from pipeline.artifacts import store
        def build(places, _scratch):
            places["pack"].mkdir()
            for name in {names}:
                (places["pack"] / name).write_text(name)
        def take(place):
            return store.cached("shout", settings={{}}, inputs={{}}, outputs={{"pack": place}}, code=(), packages=(),
                                build=build)
    """)
    damages = script + textwrap.dedent("""
        for _ in range(60):
            take(Path("damaging/pack"))
            for stored in Path(sys.argv[1]).glob("objects/*/entry.json"):
                stored.unlink()
    """)
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "REPNETS_STORE": str(tmp_path / "store")}
    command = [sys.executable, "-c", damages, str(tmp_path / "store")]
    taken = {}
    exec(script, taken)
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            taken["take"](tmp_path / "taken/pack")
            found = {path.name: path.read_text() for path in (tmp_path / "taken/pack").iterdir()}
            assert found == {name: name for name in names}
            shutil.rmtree(tmp_path / "taken")
    assert process.returncode == 0
    assert list((tmp_path / "store/work").iterdir()) == []


@needs_root
def test_a_store_on_a_read_only_mount_is_said_to_be_one(tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,ro", "none", disk]).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        monkeypatch.setenv("REPNETS_STORE", str(disk / "store"))
        with pytest.raises(
            StageError, match=r"Read-only file system while writing .*Mount it for writing, or set REPNETS_STORE"
        ):
            put(tmp_path / "a")
    finally:
        subprocess.run(["umount", disk], check=True)
