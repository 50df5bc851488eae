"""The store between users, in odd shapes, and on disks that are full or cannot be written."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from pipeline.artifacts import store
from pipeline.errors import InputError, StageError

PROJECT = Path(store.__file__).resolve().parents[2]
ANN, BOB, TEAM = 61001, 61002, 61000
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to act as two users")


def put(place: Path) -> bool:
    """Run a stage of two outputs, a file and a folder; whether they came out of the store."""

    def build(places, _scratch):
        places["words"].write_text("words")
        places["pack"].mkdir()
        (places["pack"] / "inner").write_text("inner")

    outputs = {"words": place / "words.txt", "pack": place / "pack"}
    return store.cached("shout", settings={}, inputs={}, outputs=outputs, code=(), packages=(), build=build)


def entry_json(change):
    def damage(entry):
        document = json.loads((entry / "entry.json").read_text())
        (entry / "entry.json").write_text(json.dumps(change(document)))

    return damage


def replaced(name, make):
    def damage(entry):
        place = entry / name if name else entry
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink()
        make(place)

    return damage


def moved_away(entry):
    """A link to the very same entry elsewhere."""
    entry.rename(entry.parents[1] / "elsewhere")
    entry.symlink_to(entry.parents[1] / "elsewhere")


def link_inside(entry):
    (entry / "words/words.txt").rename(entry / "words.txt")
    (entry / "words/words.txt").symlink_to(entry / "words.txt")


ODD = {
    "a file for the entry": replaced("", Path.touch),
    "a pipe for the entry": replaced("", os.mkfifo),
    "a dangling link for the entry": replaced("", lambda place: place.symlink_to("nowhere")),
    "a link to the entry": moved_away,
    "an empty entry": replaced("", Path.mkdir),
    "a folder for entry.json": replaced("entry.json", Path.mkdir),
    "a pipe for entry.json": replaced("entry.json", os.mkfifo),
    "a link to itself for entry.json": replaced("entry.json", lambda place: place.symlink_to("entry.json")),
    "a list": entry_json(lambda _: []),
    "a number": entry_json(lambda _: 3),
    "a list of outputs": entry_json(lambda document: document | {"outputs": list(document["outputs"])}),
    "no outputs": entry_json(lambda document: document | {"outputs": {}}),
    "an output less": entry_json(lambda document: document | {"outputs": {"words": document["outputs"]["words"]}}),
    "digests that are no text": entry_json(lambda document: document | {"outputs": dict.fromkeys(("words", "pack"))}),
    "another key": entry_json(lambda document: document | {"key": "0" * 64}),
    "not UTF-8": replaced("entry.json", lambda place: place.write_bytes(b"\xff\xfe")),
    "deep JSON": replaced("entry.json", lambda place: place.write_text("[" * 100_000)),
    "a missing output": lambda entry: shutil.rmtree(entry / "words"),
    "an empty output": lambda entry: (entry / "words/words.txt").unlink(),
    "a file for an output's folder": replaced("words", Path.touch),
    "a pipe for an output": replaced("words/words.txt", os.mkfifo),
    "a link for an output": link_inside,
    "two outputs for one": lambda entry: (entry / "words/more.txt").touch(),
    "a pipe in a folder": lambda entry: os.mkfifo(entry / "pack/pack/pipe"),
    "a file that others can write": lambda entry: (entry / "words/words.txt").chmod(0o666),
}


@pytest.mark.parametrize("how", ODD)
def test_an_entry_of_an_odd_shape_is_a_miss(tmp_path, capsys, how):
    assert put(tmp_path / "a") is False
    (entry,) = (tmp_path / "store/objects").iterdir()
    ODD[how](entry)
    assert put(tmp_path / "b") is False
    assert "thrown away, building again" in capsys.readouterr().err
    assert (tmp_path / "b/words.txt").read_text() == "words"
    assert (tmp_path / "b/pack/inner").read_text() == "inner"
    assert put(tmp_path / "c") is True


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda place: place.symlink_to("/dev/zero")])
@pytest.mark.parametrize("where", ["locks", "work", "work/scratch"])
def test_odd_locks_and_temporary_folders_are_thrown_away(tmp_path, where, make):
    put(tmp_path / "a")
    (entry,) = (tmp_path / "store/objects").iterdir()
    shutil.rmtree(entry)
    place = tmp_path / "store" / where.split("/")[0] / entry.name
    if where == "locks":
        place.unlink()
    elif where != "work":
        place.mkdir()
        place /= "scratch"
    make(place)
    assert put(tmp_path / "b") is False
    assert put(tmp_path / "c") is True


def test_a_lock_cuts_nothing_off(tmp_path):
    """A link in the place of a lock is not followed, and a file keeps its content."""
    put(tmp_path / "a")
    (lock,) = (tmp_path / "store/locks").iterdir()
    lock.unlink()
    (tmp_path / "precious").write_text("precious")
    lock.symlink_to(tmp_path / "precious")
    assert put(tmp_path / "b") is True
    lock.unlink()
    os.link(tmp_path / "precious", lock)
    assert put(tmp_path / "c") is True
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("name", ["objects", "work", "locks"])
def test_a_file_for_a_folder_of_the_store_is_named(tmp_path, name):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / name).touch()
    with pytest.raises(StageError, match=rf"while writing .*store/{name}"):
        put(tmp_path / "a")


@pytest.mark.parametrize(
    "variable, value, told",
    [
        ("REPNETS_STORE_TRUST", "all", "REPNETS_STORE_TRUST is `all`; set it to owner or group"),
        ("REPNETS_STORE_GROUP", "no-such-group", "this machine has no group `no-such-group`"),
    ],
)
def test_a_setting_that_is_not_known_is_refused(tmp_path, monkeypatch, variable, value, told):
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match=told):
        put(tmp_path / "a")


@pytest.fixture
def shared():
    """A folder that every user can write to."""
    with tempfile.TemporaryDirectory(prefix="repnets-test-") as name:
        Path(name).chmod(0o777)
        yield Path(name)


def as_user(user: int, shared: Path, text: str = "words", **environment: str) -> str:
    """Run a stage as a user of the group; ``built``, ``from the store``, or its error."""
    script = f"""
        import os, sys
        from pathlib import Path
        from pipeline.artifacts import store
        from pipeline.errors import StageError
        os.umask(0o077)
        os.setgroups([{TEAM}])
        os.setresgid({TEAM}, {TEAM}, {TEAM})
        os.setresuid({user}, {user}, {user})  # only now: Python itself may lie where others cannot read
        def build(places, scratch):
            places["result"].write_text({text!r})
        try:
            hit = store.cached("shout", settings={{}}, inputs={{}}, outputs={{"result": Path("out-{user}/a.txt")}},
                               code=(), packages=(), build=build)
        except StageError as error:
            sys.exit(str(error))
        print("from the store" if hit else "built")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, cwd=shared, timeout=30,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT), "HOME": str(shared),
             "REPNETS_STORE": str(shared / "store"), **environment},
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.splitlines()[-1] if done.returncode == 0 else done.stderr


def team_store(shared: Path, mode: int = 0o2775) -> Path:
    place = shared / "store"
    place.mkdir()
    os.chown(place, ANN, TEAM)
    place.chmod(mode)
    return place


@needs_root
@pytest.mark.parametrize("by", ["setgid", "variable"])
def test_a_group_shares_a_store_where_its_members_say_so(shared, by):
    team_store(shared, 0o2775 if by == "setgid" else 0o775)
    group = {"REPNETS_STORE_TRUST": "group", **({"REPNETS_STORE_GROUP": str(TEAM)} if by == "variable" else {})}
    assert as_user(ANN, shared, **group) == "built"
    assert as_user(BOB, shared, **group) == "from the store"
    assert (shared / f"out-{BOB}/a.txt").read_text() == "words"
    (stored,) = shared.glob("store/objects/*/result/a.txt")
    stored.write_text("other")
    assert as_user(BOB, shared, **group) == "built"
    assert as_user(ANN, shared, **group) == "from the store"


@needs_root
def test_an_entry_of_another_user_is_not_taken_by_itself(shared):
    """Ann's entry is forged, with digests that fit; Bob, who trusts himself alone, builds his own beside it."""
    team_store(shared)
    assert as_user(ANN, shared, text="forged") == "built"
    assert as_user(BOB, shared) == "built"
    assert (shared / f"out-{BOB}/a.txt").read_text() == "words"
    assert as_user(BOB, shared) == "from the store"
    assert as_user(ANN, shared) == "from the store"
    assert (shared / f"out-{ANN}/a.txt").read_text() == "forged"


@needs_root
def test_a_file_of_another_user_in_an_own_entry_is_not_taken(shared):
    team_store(shared)
    as_user(BOB, shared)
    (stored,) = shared.glob("store/objects/*/result/a.txt")
    os.chown(stored, ANN, TEAM)
    assert as_user(BOB, shared) == "built"


@needs_root
def test_a_store_that_cannot_be_written_gives_hits(shared):
    place = team_store(shared)
    assert as_user(ANN, shared, REPNETS_STORE_TRUST="group") == "built"
    for folder in (place, *place.iterdir()):
        folder.chmod(0o555)
    for lock in (place / "locks").iterdir():
        lock.unlink()
    assert as_user(BOB, shared, REPNETS_STORE_TRUST="group") == "from the store"
    assert "Permission denied while writing" in as_user(BOB, shared)


@needs_root
def test_a_hit_needs_no_write_to_a_lock_of_another_user(shared):
    """Ann's store, which Bob may read and not write: his hit takes no lock, and changes nothing of hers."""
    place = team_store(shared, 0o755)
    assert as_user(ANN, shared, REPNETS_STORE_TRUST="group") == "built"
    for folder in place.iterdir():
        folder.chmod(0o755)
    (lock,) = (place / "locks").iterdir()
    lock.write_text("hers")
    lock.chmod(0o444)

    def seen() -> dict[str, tuple[int, ...]]:
        return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_ctime_ns) for path in place.rglob("*")}

    before = seen()
    assert as_user(BOB, shared, REPNETS_STORE_TRUST="group") == "from the store"
    assert seen() == before
    assert lock.read_text() == "hers"


@needs_root
def test_a_full_disk_names_its_file_system(tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", disk]).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        monkeypatch.setenv("REPNETS_STORE", str(disk / "store"))
        with pytest.raises(StageError, match=rf"No space left .*the file system at {disk} is full.* Make room there"):
            store.cached("shout", settings={}, inputs={}, outputs={"a": tmp_path / "a"}, code=(), packages=(),
                         build=lambda places, _: places["a"].write_bytes(bytes(5_000_000)))  # fmt: skip
    finally:
        subprocess.run(["umount", disk], check=True)
