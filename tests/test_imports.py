"""Imports run one way: down the list of rooms in `tests/rooms.py`; stages never import each other."""

import json
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest

from pipeline.stages.command import STAGES
from tests import rooms
from tests.rooms import PROJECT, imports_of, module_of, room_of

HEAVY = (
    "torch",
    "torchvision",
    "numpy",
    "onnx",
    "onnxruntime",
    "coremltools",
    "executorch",
    "openvino",
    "sklearn",
    "PIL",
    "pygraphviz",
)
SOURCES = rooms.sources()


def test_there_is_something_to_check():
    modules = {module_of(path) for path in SOURCES}
    assert {f"pipeline.stages.{stage}" for stage in STAGES} <= modules
    assert {room_of(module) for module in modules} <= set(rooms.ROOMS)
    assert sum(rooms.between_rooms().values()) > 100


def test_imports_go_down():
    assert rooms.upwards() == []


def test_an_import_that_goes_up_is_seen(tmp_path, monkeypatch):
    """The table can fail: a module of `artifacts` that imports a stage is named."""
    path = tmp_path / "pipeline" / "artifacts" / "wrong.py"
    path.parent.mkdir(parents=True)
    (tmp_path / "pipeline" / "stages").mkdir()
    path.write_text("from pipeline.stages import check\n")
    monkeypatch.setattr(rooms, "PROJECT", tmp_path)
    assert rooms.upwards() == ["pipeline.artifacts.wrong (artifacts) imports pipeline.stages.check (stages)"]


def test_no_two_rooms_import_each_other():
    ties = rooms.between_rooms()
    assert [pair for pair in ties if pair[::-1] in ties] == []


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_a_stage_is_called_by_its_rule_and_never_imported(path):
    stages = {f"pipeline.stages.{stage}" for stage in STAGES}
    assert {name for name in imports_of(path) if name in stages or name.rpartition(".")[0] in stages} == set()


@pytest.mark.parametrize("path", rooms.users(), ids=lambda path: str(path.relative_to(PROJECT)))
def test_every_name_that_is_used_of_a_module_of_ours_is_there(path):
    """`programs.input_shape`, say, in a function that no test calls."""
    assert rooms.missing_names(path) == []


def test_a_name_that_is_not_there_is_seen(tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text("from pipeline import errors\n\nerrors.shown\nerrors.no_such\n")
    assert rooms.missing_names(path) == ["errors.no_such, line 4"]


def test_no_circle_of_modules():
    modules = {module_of(path) for path in SOURCES}

    def of(name: str) -> str:
        return name if name in modules else name.rpartition(".")[0]

    ties = {module_of(path): {of(name) for name in imports_of(path)} - {module_of(path)} for path in SOURCES}
    TopologicalSorter(ties).prepare()  # raises a CycleError that names the modules


def test_nothing_heavy_is_imported_on_the_way_to_a_store_hit():
    """The Snakefile imports all of these each time it is parsed, and each stage is started for every hit."""
    modules = [module_of(path) for path in SOURCES if module_of(path).startswith("pipeline")]
    script = f"""
import importlib, json, sys
for module in {modules!r} + ["repnets", "repnets.networks"]:
    importlib.import_module(module)
print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PROJECT, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize("path", [path for path in SOURCES if path.name == "__init__.py"], ids=module_of)
def test_the_face_of_a_package_is_no_longer_than_a_page(path):
    assert len(path.read_text().splitlines()) < 150


def test_files_keep_to_their_room():
    long = {
        str(path.relative_to(PROJECT)): lines
        for path in [*SOURCES, *PROJECT.glob("workflows/*.smk"), PROJECT / "Snakefile"]
        if (lines := len(path.read_text().splitlines())) > (150 if path.suffix != ".py" else 420)
    }
    assert long == {}
