"""Two networks at one input: how far what they give is apart."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from repnets.fusion.calls import Call, Recorder, repeated, same_way

_TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-3}  # of the largest output
_COARSE = 0.05  # of half precision; and of integers and truth values: the part that may differ

Network = Callable[..., object]


@dataclass(frozen=True)
class Trial:
    """A model, and what other networks are to give where it gives something.

    Attributes:
        model: In eval mode, on the CPU.
        example: An input that the model takes.
        way: The calls of the model there.
    """

    model: nn.Module
    example: Tensor
    way: Sequence[Call]

    def agrees(self, network: Network, shape: Sequence[int], *, same_calls: bool = False) -> bool:
        """Whether the model gives numbers at a shape, and the network gives the same there, for random input.

        Args:
            network: Takes what the model takes.
            shape: Of the input.
            same_calls: Whether the model is also to make the calls there that it makes at the example.
        """
        x, recorder = random_input(self.example, shape), Recorder()

        def recorded(x: Tensor) -> object:
            with recorder:
                return self.model(x)

        try:
            with torch.no_grad():
                want = run(recorded, [x])
                if same_calls and not same_way(self.way, [Call("input", (tuple(shape),)), *recorder.calls]):
                    return False
                got = run(network, [x])
        except Exception:  # whatever layer does not take that size
            return False
        if any(isinstance(one, Tensor) and not one.isfinite().any() for one in tree_leaves(want)):
            return False  # nothing is left of so small an image
        return difference(got, want) <= tolerance(self.model, x, want, *recorder.dtypes)


def run(network: Network, inputs: Sequence[Tensor]) -> object:
    """What a network gives, with always the same random numbers. It may write into its inputs, so it gets copies."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return network(*map(torch.clone, inputs))


def random_input(example: Tensor, shape: Sequence[int]) -> Tensor:
    """Numbers of both signs, always the same ones; of an example that is not floating-point, its own values."""
    if not example.is_floating_point():
        return repeated(example, shape)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(tuple(shape), generator=generator).to(example.dtype)


def tolerance(model: nn.Module, *values: object) -> float:
    """How far apart, of the largest output, two computations of one network may be: by its coarsest dtype.

    Args:
        model: Whose parameters count.
        *values: Its inputs and outputs, whose tensors count too, and dtypes that it computes with on the way: a network
            may take float64 and compute, or give, float32.
    """
    leaves = (*model.parameters(), *tree_leaves(values))
    dtypes = {one.dtype if isinstance(one, Tensor) else one for one in leaves if isinstance(one, Tensor | torch.dtype)}
    used = [_TOLERANCES.get(dtype, _COARSE) for dtype in dtypes if dtype.is_floating_point]
    return max(used, default=_TOLERANCES[torch.float32])


def difference(got: object, want: object) -> float:
    """The largest difference of two outputs, of the largest number wanted, over all tensors in them.

    Of integers and truth values it is the part of them that differs, so that a tie that fell otherwise is no error.
    It is infinite where shapes or dtypes differ, or where one is finite and the other is not.
    """
    ours, theirs = tree_leaves(got), tree_leaves(want)
    if len(ours) != len(theirs):
        return inf
    return max(map(_apart, ours, theirs), default=0.0)


def _apart(got: object, want: object) -> float:
    if not isinstance(want, Tensor) or not isinstance(got, Tensor):
        return 0.0 if got is want or got == want else inf
    if got.shape != want.shape or got.dtype != want.dtype:
        return inf
    if not want.numel():
        return 0.0
    if not (want.is_floating_point() or want.is_complex()):
        return float((got != want).double().mean()) * _TOLERANCES[torch.float32] / _COARSE
    finite = want.isfinite()
    if not torch.equal(finite, got.isfinite()):
        return inf
    got, want = got[finite], want[finite]
    if not want.numel():
        return 0.0
    error, scale = float((got - want).abs().max()), float(want.abs().max())
    return error / scale if scale else (inf if error else 0.0)
