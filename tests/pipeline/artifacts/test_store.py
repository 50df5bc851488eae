"""The store: what counts for a key, what a hit is, and that nothing is ever half there."""

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from pipeline.artifacts import digests, source_files, store
from pipeline.errors import InputError, StageError

PROJECT = Path(store.__file__).resolve().parents[2]


def build_copy(source: Path, place: Path, **changes) -> bool:
    """Run a stage that writes its input in capitals."""
    arguments = {
        "settings": {"a": 1},
        "inputs": {"source": source},
        "outputs": {"result": place},
        "code": ("pipeline.errors",),
        "packages": ("numpy",),
        "build": lambda places, _: places["result"].write_text(source.read_text().upper()),
    }
    return store.cached("shout", **{**arguments, **changes})


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.txt"
    path.write_text("words")
    return path


def test_builds_once_and_then_hits(source, tmp_path):
    assert build_copy(source, tmp_path / "a.txt") is False
    assert build_copy(source, tmp_path / "b.txt") is True
    assert (tmp_path / "b.txt").read_text() == "WORDS"


@pytest.mark.parametrize(
    "change",
    [{"settings": {"a": 2}}, {"code": ("pipeline.config.project",)}, {"packages": ("torch",)}, {"host": "other"}],
)
def test_everything_that_shapes_the_result_is_in_the_key(source, tmp_path, change):
    build_copy(source, tmp_path / "a.txt")
    assert build_copy(source, tmp_path / "a.txt", **change) is False


def test_content_counts_and_dates_do_not(source, tmp_path):
    build_copy(source, tmp_path / "a.txt")
    os.utime(source)
    assert build_copy(source, tmp_path / "a.txt") is True
    source.write_text("other")
    os.utime(source, (0, 0))
    assert build_copy(source, tmp_path / "a.txt") is False
    assert (tmp_path / "a.txt").read_text() == "OTHER"


@pytest.mark.parametrize("damage", ["flip", "delete", "no entry"])
def test_a_damaged_entry_is_noticed_thrown_away_and_rebuilt(source, tmp_path, capsys, damage):
    build_copy(source, tmp_path / "a.txt")
    (stored,) = (tmp_path / "store").glob("objects/*/result/*")
    if damage == "flip":
        stored.write_text("WORLD")
    elif damage == "delete":
        stored.unlink()
    else:
        (stored.parents[1] / "entry.json").write_text("{")
    assert build_copy(source, tmp_path / "a.txt") is False
    assert "thrown away, building again" in capsys.readouterr().err
    assert (tmp_path / "a.txt").read_text() == "WORDS"
    assert build_copy(source, tmp_path / "a.txt") is True


@pytest.mark.parametrize("how", ["renamed over", "written into", "removed"])
def test_an_input_that_is_replaced_while_a_stage_runs_leaves_nothing(source, tmp_path, how):
    """Whichever content the stage read, the result would be kept under the key of the first one."""
    place = tmp_path / "a.txt"

    def build(places, _):
        (tmp_path / "fresh").write_text("others")
        if how == "renamed over":
            os.replace(tmp_path / "fresh", source)
        elif how == "written into":
            source.write_text("others")
        places["result"].write_text((tmp_path / "fresh").read_text() if how == "removed" else source.read_text())
        if how == "removed":
            source.unlink()

    with pytest.raises(InputError, match=r"source\.txt was replaced while it was being read.* Nothing was kept"):
        build_copy(source, place, build=build)
    assert not place.exists() and list((tmp_path / "store").glob("objects/*")) == []
    source.write_text("words")
    assert build_copy(source, place) is False
    assert place.read_text() == "WORDS"


def test_inputs_are_digested_once_for_the_key_and_what_is_written(source, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(digests, "digest", lambda path: read.append(path) or "00")
    inputs = digests.Inputs({"source": source, "none": None})
    assert inputs.sha256 == inputs.sha256 == {"source": "00"}
    assert read == [source]


def test_a_folder_replaces_a_folder_whole(source, tmp_path):
    place = tmp_path / "out.mlpackage"

    def build(names):
        def write(places, _):
            places["result"].mkdir()
            for name in names:
                (places["result"] / name).write_text(name)

        return write

    build_copy(source, place, build=build(["one", "two"]))
    build_copy(source, place, build=build(["three"]), settings={"a": 2})
    assert [file.name for file in place.iterdir()] == ["three"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_stage_that_fails_leaves_what_stood_there(source, tmp_path):
    build_copy(source, tmp_path / "a.txt")

    def fail(places, _):
        places["result"].write_text("half")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        build_copy(source, tmp_path / "a.txt", settings={"a": 2}, build=fail)
    assert (tmp_path / "a.txt").read_text() == "WORDS"
    assert build_copy(source, tmp_path / "a.txt", settings={"a": 2}) is False


def test_a_stage_that_writes_nothing_is_a_defect(source, tmp_path):
    with pytest.raises(StageError, match="without writing result"):
        build_copy(source, tmp_path / "a.txt", build=lambda places, _: None)


def test_the_disk_is_full_and_the_earlier_file_survives(source, tmp_path):
    """A limit on file size stands for the full disk: the write fails half-way in the same place."""
    place = tmp_path / "a.txt"
    build_copy(source, place)
    script = f"""
        import resource, sys
        from pathlib import Path
        from pipeline.artifacts import store
        from pipeline.errors import InputError, StageError
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            store.cached("shout", settings={{}}, inputs={{}}, outputs={{"result": Path({str(place)!r})}}, code=(),
                         packages=(), build=lambda places, _: places["result"].write_text("x" * 5000))
        except StageError as error:
            sys.exit(str(error))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert "Nothing was lost" in done.stderr
    assert place.read_text() == "WORDS"


def test_what_is_kept_is_read_where_it_lies(tmp_path, capsys):
    builds = []

    def build(places, _):
        builds.append(1)
        places["result"].write_text("words")

    def keep(**settings):
        return store.kept("shout", settings=settings, outputs={"result": "a.txt"}, code=(), packages=(), build=build)

    place = keep(a=1)["result"]
    assert (keep(a=1)["result"], place.read_text(), len(builds)) == (place, "words", 1)
    assert place.is_relative_to(tmp_path / "store")
    assert keep(a=2)["result"] != place
    place.write_text("other")
    assert (keep(a=1)["result"].read_text(), len(builds)) == ("words", 3)
    assert "thrown away, building again" in capsys.readouterr().err


def test_two_runs_at_once_build_once(source, tmp_path):
    builds = []

    def slow(places, _):
        builds.append(1)
        time.sleep(0.3)
        places["result"].write_text("slow")

    runs = [
        threading.Thread(target=build_copy, args=(source, tmp_path / f"{n}.txt"), kwargs={"build": slow})
        for n in range(3)
    ]
    for one in runs:
        one.start()
    for one in runs:
        one.join()
    assert len(builds) == 1
    assert [(tmp_path / f"{n}.txt").read_text() for n in range(3)] == ["slow"] * 3


def test_scratch_survives_a_kill(source, tmp_path):
    script = f"""
        import os, signal
        from pathlib import Path
        from pipeline.artifacts import store
        def build(places, scratch):
            (scratch / "epoch").write_text("3")
            places["result"].write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
        store.cached("train", settings={{}}, inputs={{}}, outputs={{"result": Path({str(tmp_path / "a.txt")!r})}},
                     code=(), packages=(), build=build)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=PROJECT)
    assert done.returncode == -9
    assert not (tmp_path / "a.txt").exists()
    seen = []

    def resume(places, scratch):
        seen.append((scratch / "epoch").read_text())
        places["result"].write_text("whole")

    store.cached(
        "train",
        settings={},
        inputs={},
        outputs={"result": tmp_path / "a.txt"},
        code=(),
        packages=(),
        build=resume,
    )
    assert seen == ["3"]
    assert list((tmp_path / "store" / "work").iterdir()) == []


def test_digest_of_a_folder_counts_names_and_contents(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, name in ((one, "a"), (two, "b")):
        folder.mkdir()
        (folder / name).write_text("same")
    assert digests.digest(one) != digests.digest(two)
    (two / "b").rename(two / "a")
    assert digests.digest(one) == digests.digest(two)


def code_of(tmp_path, monkeypatch, **files):
    """Digest of module `pkg.stage` in a project of these files."""
    monkeypatch.chdir(tmp_path)
    cached = (digests.code_digest, digests._read_code, source_files.file_of, source_files.version, source_files._top)
    forget = [one.cache_clear for one in cached]
    for one in forget:
        one()
    (tmp_path / "pkg").mkdir(exist_ok=True)
    (tmp_path / "pkg" / "__init__.py").touch()
    for name, text in files.items():
        (tmp_path / "pkg" / f"{name}.py").write_text(textwrap.dedent(text))
    try:
        return digests.code_digest("pkg.stage")
    finally:
        for one in forget:
            one()


def test_code_counts_and_comments_do_not(tmp_path, monkeypatch):
    stage = "from pkg.helper import f\n\ndef run():\n    return f()\n"
    first = code_of(tmp_path, monkeypatch, stage=stage, helper="def f():\n    return 1\n")
    commented = code_of(
        tmp_path, monkeypatch, stage="# why\n" + stage, helper='def f():\n    """Words."""\n    return  1\n'
    )
    assert commented == first
    assert code_of(tmp_path, monkeypatch, helper="def f():\n    return 2\n") != first


def test_an_import_inside_a_function_counts(tmp_path, monkeypatch):
    stage = "def run():\n    from pkg import helper\n    return helper.f()\n"
    first = code_of(tmp_path, monkeypatch, stage=stage, helper="def f():\n    return 1\n")
    assert code_of(tmp_path, monkeypatch, stage=stage, helper="def f():\n    return 2\n") != first


def test_a_hit_imports_nothing_heavy(source, tmp_path):
    build_copy(source, tmp_path / "a.txt")
    script = f"""
        import json, sys
        from pathlib import Path
        from pipeline.artifacts import store
        hit = store.cached("shout", settings={{"a": 1}}, inputs={{"source": Path({str(source)!r})}},
                           outputs={{"result": Path({str(tmp_path / "b.txt")!r})}}, code=("pipeline.errors",),
                           packages=("numpy",), build=None)
        print(json.dumps([hit, [name for name in ("torch", "numpy", "onnx", "snakemake") if name in sys.modules]]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=True,
        cwd=PROJECT,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [True, []]


def test_a_script_can_still_be_run(source, tmp_path):
    def write(places, _):
        places["result"].write_text("#!/bin/sh\n")
        places["result"].chmod(0o755)

    build_copy(source, tmp_path / "run.sh", build=write)
    assert os.access(tmp_path / "run.sh", os.X_OK)
