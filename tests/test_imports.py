"""Imports run one way: rules call stages; stages use repnets, backends and each other's files, never each other."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
STAGES = {
    "split", "train", "adopt", "recalibrate", "reparameterize", "draw", "verify", "quantize", "export", "check",
    "bench", "race", "summarize", "report", "bundle",
}  # fmt: skip
HEAVY = (
    "torch",
    "torchvision",
    "numpy",
    "onnx",
    "onnxruntime",
    "coremltools",
    "executorch",
    "sklearn",
    "PIL",
    "pygraphviz",
)
SOURCES = sorted([*PROJECT.glob("pipeline/**/*.py"), *PROJECT.glob("repnets/**/*.py")])


def imports_of(path: Path) -> set[str]:
    """Full names of the first-party things that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return {name for name in found if name.split(".")[0] in ("pipeline", "repnets")}


def within(names: set[str], *packages: str) -> set[str]:
    return {name for name in names if any(name == one or name.startswith(f"{one}.") for one in packages)}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")


def test_there_is_something_to_check():
    assert {f"pipeline.{stage}" for stage in STAGES} <= {module_of(path) for path in SOURCES}


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_run_one_way(path):
    names, module = imports_of(path), module_of(path)
    stages = {f"pipeline.{stage}" for stage in STAGES}
    if module.startswith("repnets"):
        assert within(names, "pipeline") == set(), "repnets knows nothing of the pipeline"
    elif module.startswith("pipeline.backends"):
        allowed = ("pipeline.backends", "pipeline.devices", "pipeline.artifacts.manifest", "pipeline.errors")
        assert within(names, "pipeline") == within(names, *allowed), "backends know manifest's types and devices alone"
    elif module.startswith("pipeline.devices"):
        allowed = ("pipeline.devices", "pipeline.errors")
        assert within(names, "pipeline") == within(names, *allowed), "devices know nothing of what runs on them"
    else:
        assert within(names, *stages) == set(), "a stage is called by its rule, never imported"


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
