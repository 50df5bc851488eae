"""A network in float64: every tensor of it, and what was one tensor is one still."""

import torch
from torch import Tensor, nn

from repnets.float64 import in_float64


class Shares(nn.Module):
    """A buffer, a parameter and a plain attribute that two modules have, and a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
        self.other.weight = self.one.weight
        grid, scale = torch.rand(3), torch.rand(3)
        for module in (self, self.one, self.other):
            module.register_buffer("grid", grid)
            module.scale = scale
        self.steps, self.count, self.nothing = [torch.rand(2), scale], torch.tensor(3), None

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.one(x)) * self.steps[0] + self.scale.sum()


def test_all_is_float64_and_shared_as_before():
    model = Shares()
    wide = in_float64(model)
    assert wide.grid is wide.one.grid and wide.grid is wide.other.grid
    assert wide.scale is wide.other.scale and wide.scale is wide.steps[1]
    assert wide.one.weight is wide.other.weight and isinstance(wide.one.weight, nn.Parameter)
    floats = [*wide.parameters(), *wide.buffers(), wide.scale, *wide.steps]
    assert {one.dtype for one in floats} == {torch.float64}
    assert wide.count.dtype == torch.int64 and wide.nothing is None
    assert wide(torch.zeros(1, 2, 1, 2, dtype=torch.float64)).dtype == torch.float64


def test_the_model_is_left_as_it_was():
    model = Shares().double()
    wide = in_float64(model)
    with torch.no_grad():
        for tensor in (*wide.parameters(), *wide.buffers(), *wide.steps):
            tensor.zero_()
    assert all(tensor.any() for tensor in (*model.parameters(), *model.buffers(), *model.steps))
    assert model.one.weight.requires_grad and wide.one.weight.requires_grad
