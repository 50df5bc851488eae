import pytest
import torch
from torch import nn

from pipeline.errors import StageError
from pipeline.models.passes.dynamic_batch import with_open_batch


class Reshapes(nn.Module):
    """Takes the batch from its input, which tracing makes a number; and reshapes a weight, which has no batch."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.arange(1.0, 7.0))

    def forward(self, x):
        x = x * self.scale.reshape(1, 6, 1, 1)
        x = x.view(x.size(0), 2, 3, 4, 4).transpose(1, 2).reshape(x.shape[0], -1)
        return x


class Fixed(nn.Module):
    """Adds a tensor of as many rows as there were images."""

    def forward(self, x):
        return x.flatten(1) + torch.arange(x.shape[0] * 96.0).view(x.shape[0], 96)


@pytest.mark.parametrize("traced", [1, 4])
def test_reshapes_to_the_traced_batch_are_ones_to_any(traced):
    model = Reshapes()
    program = torch.export.export(model, (torch.randn(traced, 6, 4, 4),))
    opened = with_open_batch(program, 1, 9).module()
    for count in (1, 3, 9):
        images = torch.randn(count, 6, 4, 4)
        torch.testing.assert_close(opened(images), model(images), rtol=0, atol=0)
    with pytest.raises((AssertionError, RuntimeError)):
        opened(torch.randn(10, 6, 4, 4))
    assert program.module()(torch.randn(traced, 6, 4, 4)).shape[0] == traced, "the given program was changed"


def test_a_network_that_holds_its_batch_is_refused():
    program = torch.export.export(Fixed(), (torch.randn(4, 6, 4, 4),))
    with pytest.raises(StageError, match=r"cannot be exported for any batch: .*Leave `dynamic_batch` out"):
        with_open_batch(program, 1, 8)
