"""What the tests of the library share: trained-looking batch norms, and one measure of difference."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def _randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                for tensor, low, high in (
                    (module.weight, 0.5, 1.5),
                    (module.bias, -0.5, 0.5),
                    (module.running_mean, -0.5, 0.5),
                    (module.running_var, 0.5, 1.5),
                ):
                    if tensor is not None:
                        tensor.uniform_(low, high, generator=generator)
        for parameter in model.parameters():
            if parameter.dim() > 1 and not parameter.any():
                parameter.normal_(0, 0.3, generator=generator)
    return model.eval()


def _relative_error(got: Tensor, wanted: Tensor) -> float:
    assert got.shape == wanted.shape
    assert wanted.abs().max() > 0
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


@pytest.fixture(scope="session")
def randomise() -> Callable[[nn.Module], nn.Module]:
    """Moves batch norms and zero weights away from their defaults, which hide errors, and sets eval mode."""
    return _randomise


@pytest.fixture(scope="session")
def relative_error() -> Callable[[Tensor, Tensor], float]:
    """Largest absolute difference relative to the largest wanted value; the shapes must agree."""
    return _relative_error


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Networks this small gain nothing from threads, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
