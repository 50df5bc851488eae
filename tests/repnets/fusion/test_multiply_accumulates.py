"""The multiply-accumulates that a report counts, against torch's own counter."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from repnets import fuse
from tests.fixtures.layers import Layers

CONVOLUTION = 4 * 3 * 9 * 8 * 8

CASES = {
    "einsum": lambda m, x: torch.einsum("bchw,oc->bohw", m.c(x), x.new_ones(5, 4)),
    "einsum with dots": lambda m, x: torch.einsum("...hw,...wk->...hk", m.c(x), x[:, :1].mT),
    "matmul": lambda m, x: m.c(x) @ x[:, :1].mT,
    "bmm": lambda m, x: torch.bmm(m.c(x).flatten(2), x.flatten(2).mT),
    "addmm": lambda m, x: torch.addmm(x.new_ones(5), m.c(x).flatten(1), x.new_ones(256, 5)),
    "transposed": lambda m, x: m.t(m.c(x)),
    "linear": lambda m, x: m.l(m.c(x).flatten(1)),
}


@pytest.fixture
def network():
    def build(forward):
        layers = {"c": nn.Conv2d(3, 4, 3, padding=1), "t": nn.ConvTranspose2d(4, 2, 3, 2), "l": nn.Linear(256, 7)}
        return Layers(forward, **layers).eval()

    return build


@pytest.mark.parametrize("case", CASES)
def test_products_count_as_torch_counts_them(network, case):
    net, x = network(CASES[case]), torch.randn(1, 3, 8, 8)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    before = fuse(net, x).report.before
    assert before.macs == counter.get_total_flops() // 2 > CONVOLUTION


def test_attention_counts_both_of_its_products(network):
    """torch counts none of them on a CPU."""
    net = network(lambda m, x: F.scaled_dot_product_attention(m.c(x), m.c(x)[..., :6, :], m.c(x)[..., :6, :3]))
    macs = fuse(net, torch.randn(1, 3, 8, 8)).report.before.macs
    assert macs % CONVOLUTION == 4 * 8 * 6 * (8 + 3)


def test_a_sum_of_one_operand_has_no_product(network):
    net = network(lambda m, x: torch.einsum("bchw->bc", m.c(x)))
    assert fuse(net, torch.randn(1, 3, 8, 8)).report.before.macs == CONVOLUTION
