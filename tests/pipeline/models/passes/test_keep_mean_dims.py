"""A mean over the image is left to XNNPACK, whether or not it keeps the dimensions."""

import pytest
import torch
from torch import nn

import repnets
from pipeline.backends.executorch import backend
from pipeline.models.passes.keep_mean_dims import keep_dimensions

MEAN, VIEW = torch.ops.aten.mean.dim, torch.ops.aten.view.default


class Pooled(nn.Module):
    """A convolution, a mean over some dimensions, and a linear layer."""

    def __init__(self, *mean, head=True, **options):
        super().__init__()
        self.mean, self.options = mean, options
        self.convolution, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5) if head else nn.Identity()

    def forward(self, input):
        return self.head(self.convolution(input).relu().mean(*self.mean, **self.options))


def exported(network):
    torch.manual_seed(0)
    return torch.export.export(network.eval(), (torch.randn(2, 3, 16, 16),))


def targets(program):
    return [node.target for node in program.graph.nodes]


@pytest.mark.parametrize("dimensions", [(2, 3), (-1, -2), (3, -2)])
def test_the_network_stays_what_it_was(dimensions):
    program = exported(Pooled(dimensions))
    kept = keep_dimensions(program)
    (mean,) = kept.graph.find_nodes(op="call_function", target=MEAN)
    assert mean.args[2] is True and mean.meta["val"].shape == (2, 8, 1, 1)
    assert VIEW in targets(kept) and VIEW not in targets(program), "the program that was given is left as it is"
    image = torch.randn(2, 3, 16, 16)
    assert torch.equal(kept.module()(image), program.module()(image))
    assert [one.name for one in kept.graph.nodes if one.op == "placeholder"] == [
        one.name for one in program.graph.nodes if one.op == "placeholder"
    ]


@pytest.mark.parametrize(
    "network",
    [
        Pooled((2, 3), keepdim=True, head=False),
        Pooled((2, 3), head=False),  # the output: the program's signature names it
        Pooled((1, 2), head=False),
        Pooled((2,), head=False),
        Pooled((2, 3), head=False, dtype=torch.float64),
    ],
    ids=["kept", "output", "other dimensions", "one dimension", "another type"],
)
def test_any_other_mean_stays(network):
    program = exported(network)
    assert keep_dimensions(program) is program


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_xnnpack_computes_the_whole_network(spec, tmp_path, precision):
    program = exported(Pooled((2, 3)))
    facts = backend.export(program, [tmp_path / "x.pte"], spec(precision))
    assert facts["delegate_calls"] == 1
    assert "aten::mean.out" not in facts["operations_outside"]
    assert backend.census(tmp_path / "x.pte")["XNNGlobalAvgPooling2d"] == 1
    image = torch.randn(2, 3, 16, 16)
    got = torch.from_numpy(backend.RUNTIME.open_session(tmp_path / "x.pte", 1)(image.numpy())[0])
    assert torch.allclose(got, program.module()(image), atol=1e-5 if precision == "fp32" else 5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_xnnpack_computes_a_head_whose_mean_was_folded_with_its_layer(spec, tmp_path, precision):
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 5)
    ).eval()  # fmt: skip
    fused = repnets.fuse(network, torch.zeros(2, 3, 16, 16)).module
    assert not fused.graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default)
    facts = backend.export(exported(fused), [tmp_path / "x.pte"], spec(precision))
    assert facts["delegate_calls"] == 1
    assert "aten::mean.out" not in facts["operations_outside"]
