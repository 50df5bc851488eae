"""1x1 convolutions after upsampling and before a mean: computed where there are fewer positions."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from repnets import fuse
from tests.fixtures.layers import Layers


def network(forward, **layers):
    """A nonlinearity, and a function of the layers and what comes out of it."""
    return Layers(lambda m, x: forward(m, x.sigmoid()), **layers)


@pytest.fixture
def moved(randomise, relative_error):
    """Fuses a float64 network of 16 channels, compares it at two sizes, and gives the names of its calls and MACs."""

    def check(net: nn.Module) -> tuple[list[str], float]:
        net = randomise(net.double())
        result = fuse(net, torch.zeros(1, 16, 12, 12, dtype=torch.float64))
        for shape in ((2, 16, 12, 12), (1, 16, 13, 8)):
            x = torch.randn(shape, dtype=torch.float64)
            with torch.no_grad():
                assert relative_error(result.module(x), net(x)) < 1e-12
        report = result.report
        again = fuse(result.module, torch.zeros(1, 16, 12, 12, dtype=torch.float64)).report
        assert (again.regions, again.after.macs) == ((), report.after.macs)
        nodes = [one for one in result.module.graph.nodes if one.op in ("call_module", "call_function")]
        return [one.name for one in nodes if "input_sizes" not in one.name], report.after.macs / report.before.macs

    return check


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_a_pointwise_convolution_and_its_batch_norm_move_before_upsampling(moved, mode):
    net = network(lambda m, x: m.n(m.c(F.interpolate(x, scale_factor=2, mode=mode))).relu(),
              c=nn.Conv2d(16, 8, 1), n=nn.BatchNorm2d(8))  # fmt: skip
    assert moved(net) == (["sigmoid", "c", f"upsample_{mode}2d", "relu"], 0.25)


def test_a_batch_norm_folds_over_an_upsampling_into_the_convolution_before(moved):
    net = network(lambda m, x: m.n(F.interpolate(m.c(x), scale_factor=2)).relu(),
              c=nn.Conv2d(16, 16, 3, padding=1), n=nn.BatchNorm2d(16))  # fmt: skip
    names, macs = moved(net)
    assert (len(names), macs) == (4, 1)


def test_a_convolution_that_folds_where_it_is_stays(moved):
    net = network(lambda m, x: m.d(m.c(F.interpolate(x, scale_factor=2))).relu(),
              c=nn.Conv2d(16, 16, 1, bias=False), d=nn.Conv2d(16, 16, 3, padding=1))  # fmt: skip
    assert moved(net)[0][:2] == ["sigmoid", "upsample_nearest2d"]


def test_a_head_of_convolution_mean_and_layer_is_one_layer(moved):
    net = network(lambda m, x: m.d(m.n(m.c(x)).mean((2, 3))), c=nn.Conv2d(16, 32, 1), n=nn.BatchNorm2d(32),
              d=nn.Linear(32, 8))  # fmt: skip
    names, macs = moved(net)
    assert len(names) == 2
    assert macs < 0.01


def test_a_convolution_that_a_gate_needs_anyway_is_no_second_layer(moved):
    def forward(m, x):
        y = m.c(x)
        return y * m.d(y.mean((2, 3), keepdim=True)).sigmoid()

    _, macs = moved(network(forward, c=nn.Conv2d(16, 32, 1), d=nn.Conv2d(32, 32, 1)))
    assert macs <= 1
