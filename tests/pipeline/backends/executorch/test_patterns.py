"""Patterns that a program cannot hold are left out, and the file is the same without them."""

import pytest
import torch

from pipeline.artifacts.manifest import ExportSpec, Preprocessing
from pipeline.backends.executorch import backend, patterns
from pipeline.quiet import quiet


def program_of(function):
    module = torch.nn.Module()
    module.forward = function
    return torch.export.export(module.eval(), (torch.zeros(1, 3, 8, 8),))


def left_out(program):
    with quiet():
        from executorch.backends.xnnpack.partition.graphs import bilinear_2d, sdpa

    before = sdpa.get_graphs, bilinear_2d.get_graphs_dict
    with patterns.only_those_of(program):
        found = sdpa.get_graphs is not before[0], bilinear_2d.get_graphs_dict is not before[1]
    assert (sdpa.get_graphs, bilinear_2d.get_graphs_dict) == before
    return found


@pytest.mark.slow
def test_each_is_looked_for_where_it_can_be():
    upsampled = torch.nn.functional.interpolate
    assert left_out(program_of(lambda x: x.relu())) == (True, True)
    assert left_out(program_of(lambda x: x.softmax(1))) == (False, True)
    assert left_out(program_of(lambda x: upsampled(x, scale_factor=2, mode="bilinear"))) == (True, False)


@pytest.mark.slow
def test_the_file_is_the_same(tmp_path, monkeypatch):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU()).eval()
    program = torch.export.export(network, (torch.zeros(1, 3, 8, 8),))
    half = (0.5, 0.5, 0.5)
    preprocessing = Preprocessing(image_size=8, mean=half, std=half, classes=("a", "b"))
    spec = ExportSpec("fp32", (1, 3, 8, 8), preprocessing)
    backend.export(program, [tmp_path / "without.pte"], spec)
    monkeypatch.setattr(patterns, "_PATTERNS", ())
    backend.export(program, [tmp_path / "with.pte"], spec)
    assert (tmp_path / "without.pte").read_bytes() == (tmp_path / "with.pte").read_bytes()
