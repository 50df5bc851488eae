"""Folding pairs before XNNPACK's lowering changes nothing in the file but XNNPACK's debug handles."""

import re
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.backends.executorch import backend, pte
from pipeline.models.passes.float16 import half
from pipeline.models.passes.fold_batch_norms import fold_pairs
from pipeline.models.passes.keep_mean_dims import keep_dimensions
from pipeline.quiet import quiet

NORM, CONVOLUTION = torch.ops.aten.batch_norm.default, torch.ops.aten.conv2d.default


def count(program: torch.export.ExportedProgram) -> Counter:
    return Counter(node.target for node in program.graph.nodes if node.op == "call_function")


def exported(module: nn.Module, *shape: int) -> torch.export.ExportedProgram:
    for each in module.modules():
        if isinstance(each, nn.BatchNorm2d):
            for tensor in filter(lambda one: one is not None, (each.weight, each.running_var)):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in filter(lambda one: one is not None, (each.bias, each.running_mean)):
                nn.init.normal_(tensor, std=0.3)
    return torch.export.export(module.eval(), (torch.randn(shape),))


def lowered(program: torch.export.ExportedProgram) -> bytes:
    """As the backend lowers it, but with all pairs left to the exporter."""
    with quiet(), torch.no_grad():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        return to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch().buffer


def weights(content: bytes) -> Counter:
    """XNNPACK's weights in a .pte: it calls each by the sha256 of its bytes."""
    return Counter(re.findall(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])", content))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_file_is_the_one_that_the_exporter_makes_by_itself(programs, spec, image, tmp_path, precision):
    ours, theirs = tmp_path / "ours.pte", tmp_path / "theirs.pte"
    backend.export(programs["branched"], [ours], spec(precision))
    theirs.write_bytes(lowered(half(programs["branched"]) if precision == "fp16" else programs["branched"]))
    assert pte.read(ours) == pte.read(theirs)
    assert backend.census(ours)["XNNDepthwiseConv2d"] == 1, "the batch norm alone is still one"
    assert weights(ours.read_bytes()) == weights(theirs.read_bytes()) and len(weights(ours.read_bytes())) >= 14
    assert ours.stat().st_size == theirs.stat().st_size
    first, second = (np.frombuffer(file.read_bytes(), np.uint8) for file in (ours, theirs))
    assert np.count_nonzero(first != second) < 0.01 * first.size  # debug handles, small integers
    run = backend.RUNTIME.open_session
    assert np.array_equal(run(ours, 1)(image.numpy()), run(theirs, 1)(image.numpy()))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0"])
def test_the_file_of_a_whole_network_is_the_one_that_the_exporter_makes_by_itself(name, tmp_path, spec):
    import repnets

    torch.manual_seed(0)
    program = exported(repnets.create_model(name, num_classes=5), 1, 3, 32, 32)
    ours, theirs = tmp_path / "ours.pte", tmp_path / "theirs.pte"
    backend.export(program, [ours], spec("fp32"))
    theirs.write_bytes(lowered(keep_dimensions(program)))
    assert pte.read(ours) == pte.read(theirs)
    assert weights(ours.read_bytes()) == weights(theirs.read_bytes())
    images = np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)
    run = backend.RUNTIME.open_session
    assert np.array_equal(run(ours, 1)(images), run(theirs, 1)(images))


def test_pairs_are_folded_and_a_batch_norm_alone_stays(programs, image):
    before, after = programs["branched"], fold_pairs(programs["branched"])
    assert (count(before)[NORM], count(after)[NORM]) == (7, 1)
    assert count(after)[CONVOLUTION] == 6
    expected, got = before.module()(image), after.module()(image)
    assert torch.allclose(got, expected, rtol=1e-5, atol=1e-6) and not torch.equal(got, torch.zeros_like(got))


def test_the_program_is_left_as_it_is_and_no_node_is_renamed(programs, image):
    program = programs["branched"]
    names, expected = [node.name for node in program.graph.nodes], program.module()(image)
    after = fold_pairs(program)
    assert [node.name for node in program.graph.nodes] == names
    assert torch.equal(program.module()(image), expected)
    kept = [node.name for node in after.graph.nodes]
    assert kept == [name for name in names if name in kept]
    assert "input" in kept, "the name that a copy of a graph does not keep"


def test_nothing_of_a_folded_batch_norm_is_carried_along(programs):
    after = fold_pairs(programs["branched"])
    placed = {node.name for node in after.graph.nodes if node.op == "placeholder"}
    assert placed == {one.arg.name for one in after.graph_signature.input_specs}
    idle = [node.name for node in after.graph.nodes if node.op == "placeholder" and not node.users]
    assert all("num_batches_tracked" in name for name in idle)
    assert len(after.state_dict) == len(programs["branched"].state_dict) - 6 * 3


def test_a_fused_program_passes_through(programs):
    assert fold_pairs(programs["fused"]) is programs["fused"]


def test_a_convolution_with_a_bias_has_one_still(image):
    program = exported(nn.Sequential(nn.Conv2d(3, 4, 3, bias=True), nn.BatchNorm2d(4), nn.ReLU()), 1, 3, 16, 16)
    after = fold_pairs(program)
    assert (count(after)[NORM], count(after)[CONVOLUTION]) == (0, 1)
    assert len(after.graph_signature.parameters) == 2 and len(after.state_dict) == 3  # batches, counted, are left
    assert torch.allclose(after.module()(image), program.module()(image), rtol=1e-5, atol=1e-6)


class Twice(nn.Module):
    """One convolution, or one batch norm, in two places."""

    def __init__(self, shared: str) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList([nn.Conv2d(3, 3, 1, bias=False)] * 2)
        self.norms = nn.ModuleList([nn.BatchNorm2d(3) for _ in range(2)])
        if shared == "norm":
            self.convolutions[1] = nn.Conv2d(3, 3, 1, bias=False)
            self.norms[1] = self.norms[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = norm(convolution(x))
        return x.relu()


class Tapped(nn.Module):
    """A convolution that something besides its batch norm reads."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.convolution(x)
        return x + self.norm(x)


@pytest.mark.parametrize(
    "module",
    [
        Twice("convolution"),
        Twice("norm"),
        Tapped(),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False), nn.ReLU()),
        nn.Sequential(nn.ConvTranspose2d(3, 3, 3), nn.BatchNorm2d(3), nn.ReLU()),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3), nn.ReLU()),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)),
    ],
    ids=["convolution twice", "norm twice", "tapped", "no scale", "transposed", "apart", "at the end"],
)
def test_what_is_no_plain_pair_is_left_to_the_exporter(module):
    program = exported(module, 1, 3, 16, 16)
    assert fold_pairs(program) is program


def test_a_batch_norm_that_still_learns_is_left(image):
    module = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()).train()
    program = torch.export.export(module, (torch.randn(2, 3, 16, 16),))
    assert fold_pairs(program) is program
