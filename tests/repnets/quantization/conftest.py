"""A small network of two kinds of layers, as a graph with roundings where int8 would be."""

import pytest
import torch
from torch import nn

from repnets.quantization.simulation import Rounding, Simulation


def _simulated(network: nn.Module, images: torch.Tensor) -> Simulation:
    """Roundings before every convolution and linear layer, on their weights, and on what the last gives."""
    program = torch.export.export(network.eval(), (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    module = program.module()
    graph = module.graph
    layers = (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default)
    count = 0
    for node in [node for node in graph.nodes if node.target in layers]:
        for place, axis in ((0, None), (1, 0)):
            module.add_submodule(f"rounding_{count}", Rounding(axis))
            with graph.inserting_before(node):
                rounded = graph.call_module(f"rounding_{count}", (node.args[place],))
            node.update_arg(place, rounded)
            count += 1
    module.recompile()
    for one in module.modules():
        one.training = False
    found = Simulation(module)
    for rounding in found.roundings:
        rounding.enabled = True
    return found


class Net(nn.Module):
    """Convolution, depthwise convolution, grouped convolution, mean, linear; ReLUs between."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 12, 3, stride=2, groups=2, bias=False)
        self.last = nn.Linear(12, 5)

    def forward(self, x):
        x = self.first(x).relu()
        x = self.depthwise(x).relu()
        x = self.grouped(x).relu()
        return self.last(x.mean((2, 3)))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(64, 3, 10, 10, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def simulation(images) -> Simulation:
    torch.manual_seed(0)
    network = Net()
    with torch.no_grad():  # channels of very different ranges, as batch norms of wide gain leave them
        network.first.weight *= torch.logspace(-1.5, 1.5, 8).view(-1, 1, 1, 1)
        network.first.bias *= torch.logspace(-1.5, 1.5, 8)
    return _simulated(network, images)


@pytest.fixture
def simulate():
    """A function: a network and images of its input -> the network with roundings."""
    return _simulated
