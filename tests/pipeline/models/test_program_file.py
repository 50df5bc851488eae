"""The one door to .pt2 files: nothing else reads or writes them, and what they say of their sizes is true."""

import ast
import json

import pytest
import torch
from torch import nn

import repnets
from pipeline.errors import InputError
from pipeline.models import program_file
from pipeline.quantization import pt2e
from repnets.fusion.capture import capture
from repnets.quantization import ranges
from tests.rooms import PROJECT

ANY = {"min": 1, "step": 1}
FREE = {"batch": ANY, "height": ANY, "width": ANY}


def flattened(num_classes: int) -> nn.Module:
    """A network of one size: its linear layer reads every pixel."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16 * 16, num_classes),
    )


def fused(name: str, folder) -> tuple:
    """The fused network, and the file of it, at 32 x 32."""
    torch.manual_seed(0)
    model = flattened(10) if name == "flattened" else repnets.create_model(name, num_classes=10)
    module = repnets.fuse(model.eval(), torch.zeros(1, 3, 32, 32)).module
    program_file.write(capture(module, torch.zeros(2, 3, 32, 32)), folder / "fused.pt2", {"arch": name})
    return module, folder / "fused.pt2"


def claimed(file) -> dict:
    extra = {"lineage.json": ""}
    torch.export.load(file, extra_files=extra)
    return json.loads(extra["lineage.json"])["free"]


SHAPES = [(1, 3, 32, 32), (1, 3, 1, 1), (2, 3, 2, 1), (3, 3, 33, 31), (1, 3, 64, 96), (7, 3, 17, 130)]


def hold(file, module, shapes) -> None:
    run = torch.export.load(file).module()
    for shape in shapes:
        x = torch.randn(shape)
        want = module(x)
        assert (run(x) - want).abs().max() <= 1e-4 * want.abs().max(), shape


@pytest.mark.slow
@pytest.mark.parametrize("name", ["toy", "repvgg_a0", "mobileone_s0"])
def test_a_fused_program_runs_as_anybody_loads_it_at_every_size(name, tmp_path):
    module, file = fused(name, tmp_path)
    assert claimed(file) == FREE
    with torch.no_grad():
        hold(file, module, SHAPES)


def test_a_network_of_one_size_claims_the_batch_alone(tmp_path):
    module, file = fused("flattened", tmp_path)
    assert claimed(file) == {"batch": ANY}
    with torch.no_grad():
        hold(file, module, [(1, 3, 32, 32), (5, 3, 32, 32)])
    with pytest.raises(AssertionError, match="Guard failed"):
        torch.export.load(file).module()(torch.zeros(1, 3, 33, 32))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["toy", "repvgg_a0"])
def test_an_int8_program_runs_as_anybody_loads_it_at_every_size(name, tmp_path):
    _, file = fused(name, tmp_path)
    prepared = pt2e.prepare(pt2e.network(program_file.read(file)[0]))
    simulation = pt2e.simulation(prepared)
    ranges.set_activations(ranges.observe(simulation, [torch.randn(8, 3, 32, 32)]), "max")
    ranges.set_weights(simulation, "max")
    program_file.write(pt2e.convert(prepared, simulation, (2, 3, 32, 32)), tmp_path / "quantized.pt2", {})
    assert claimed(tmp_path / "quantized.pt2") == FREE
    with torch.no_grad():
        hold(tmp_path / "quantized.pt2", simulation, SHAPES)


def test_the_lineage_comes_back_as_it_was_written(tmp_path):
    program = capture(nn.Conv2d(3, 4, 3).eval(), torch.zeros(1, 3, 8, 8))
    written = program_file.write(program, tmp_path / "a.pt2", {"arch": "toy", "checkpoint": "00"})
    least = {"min": 3, "step": 1}
    assert written == {"arch": "toy", "checkpoint": "00", "free": {"batch": ANY, "height": least, "width": least}}
    assert program_file.read(tmp_path / "a.pt2")[1] == program_file.read_lineage(tmp_path / "a.pt2") == written


def test_a_program_of_somebody_else_has_no_lineage(tmp_path):
    torch.export.save(torch.export.export(nn.Linear(3, 2), (torch.zeros(1, 3),)), tmp_path / "linear.pt2")
    assert program_file.read(tmp_path / "linear.pt2")[1] == program_file.read_lineage(tmp_path / "linear.pt2") == {}


def test_a_file_that_is_not_there_is_named(tmp_path):
    for read in (program_file.read, program_file.read_lineage):
        with pytest.raises(InputError, match=r"absent\.pt2 does not exist\. Build it first: snakemake"):
            read(tmp_path / "absent.pt2")


def test_nothing_else_of_the_pipeline_reads_or_writes_programs():
    """A safe reader has to stand at one door."""
    users = {path.name for path in PROJECT.glob("pipeline/**/*.py") if _calls(path)}
    assert users == {"program_file.py"}


def _calls(path) -> bool:
    tree = ast.parse(path.read_text())
    called = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    imported = {
        f"{node.module}.{name.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    doors = {"torch.export.load", "torch.export.save", "torch.export.pt2_archive", "export.load", "export.save"}
    return bool(doors & (called | imported))


def test_every_other_pickle_is_read_as_weights_alone():
    """`torch.load` says weights_only=True wherever it is called, and nothing else unpickles."""
    calls = [
        (path.name, node)
        for folder in ("pipeline", "repnets", "benchmarks")
        for path in (PROJECT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    ]
    loads = [(name, node) for name, node in calls if ast.unparse(node.func) == "torch.load"]
    assert len(loads) >= 3
    for name, node in loads:
        assert [ast.unparse(one.value) for one in node.keywords if one.arg == "weights_only"] == ["True"], name
    others = ("pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "torch.jit.load", "torch.hub.load")
    assert [(name, ast.unparse(node)) for name, node in calls if ast.unparse(node.func) in others] == []
