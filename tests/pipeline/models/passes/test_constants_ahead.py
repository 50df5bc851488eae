"""What a network computes of its weights alone is stored in the program that is exported."""

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.models import programs
from pipeline.models.passes.constants_ahead import compute_constants
from pipeline.models.passes.float16 import half

X = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


class Standardised(nn.Conv2d):
    """A convolution whose weight has mean 0 and variance 1 (arXiv 1903.10520)."""

    def forward(self, x):
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        return F.conv2d(x, (self.weight - mean) / torch.sqrt(variance + 1e-5), self.bias)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 2, 4))

    def forward(self, x):
        return x * self.scale.exp().view(1, -1, 1, 1) + torch.rand_like(self.scale).mean() * 0


def called(program):
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


def test_computed_weights_are_stored():
    torch.manual_seed(0)
    head = nn.utils.parametrizations.weight_norm(nn.Linear(6, 5))
    network = nn.Sequential(Standardised(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), head).eval()
    program = programs.static(network, tuple(X.shape))
    assert called(program) == [f"aten.{name}.default" for name in ("conv2d", "batch_norm", "relu", "linear")]
    with torch.no_grad():
        torch.testing.assert_close(program.module()(X), network(X))


def test_a_parameter_that_is_only_seen_otherwise_is_stored_and_copied():
    """As the scale of a layer is, in ConvNeXt: seen as (1, C, 1, 1)."""

    class LayerScale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gamma = nn.Conv2d(3, 4, 3), nn.Parameter(torch.linspace(0.5, 2, 4))

        def forward(self, x):
            return self.conv(x) * self.gamma.view(1, -1, 1, 1)

    network = LayerScale().eval()
    program = half(programs.static(network, tuple(X.shape)))
    assert "aten.view.default" not in called(program)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(X), network(X), rtol=1e-2, atol=1e-2)


def test_a_network_without_any_stays_and_random_numbers_are_drawn_each_time():
    plain = torch.export.export(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), (X,)).module()
    before = [node.name for node in plain.graph.nodes]
    assert not compute_constants(plain)
    assert [node.name for node in plain.graph.nodes] == before
    program = programs.static(nn.Sequential(nn.Conv2d(3, 4, 3), Scaled()).eval(), tuple(X.shape))
    assert [name for name in called(program) if "rand" in name or "exp" in name] == ["aten.rand_like.default"]


def test_a_number_that_is_read_from_a_stored_tensor_is_written_where_it_is_used():
    """As the stride of a detector's map, in a tensor of that one value."""

    class Strided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("strides", torch.tensor([8.0, 16.0]))

        def forward(self, x):
            return x * x.new_full(x.shape[2:], self.strides[1])

    network = Strided().eval()
    program = programs.static(network, tuple(X.shape))
    assert called(program) == ["aten.new_full.default", "aten.mul.Tensor"]
    torch.testing.assert_close(program.module()(X), network(X))
