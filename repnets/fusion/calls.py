"""The calls that a network's own code makes for an input: where they differ, it took another way."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

_LARGE = 2**19  # elements of a tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """A function or method of torch that gave tensors.

    Attributes:
        name: Of the function, such as ``conv2d``.
        shapes: Of the tensors that it gave.
    """

    name: str
    shapes: tuple[Shape, ...]


class Recorder(TorchFunctionMode):
    """Records what is called while it is entered.

    Attributes:
        calls: In the order in which they returned.
        dtypes: Of the tensors that they gave.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.dtypes: set[torch.dtype] = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        shapes = tuple(tuple(leaf.shape) for leaf in given)
        if shapes:
            self.dtypes.update(leaf.dtype for leaf in given)
            self.calls.append(Call(getattr(function, "__name__", str(function)), shapes))
        return result


def calls_at(model: nn.Module, shape: Sequence[int], example: Tensor, *, dry: bool = False) -> list[Call] | None:
    """The calls for an input of a shape, the input first; None where the model fails.

    Args:
        model: On the CPU.
        shape: Of the input.
        example: An input that the model takes; it is repeated.
        dry: Whether to compute nothing, if the model runs without numbers: sooner for large images, later for small
            ones.
    """
    given = Call("input", (tuple(shape),))
    with torch.no_grad():
        if dry:
            with (
                suppress(Exception),
                quietly("torch._subclasses.fake_tensor"),
                FakeTensorMode(allow_non_fake_inputs=True),
                _with_its_tensors(model),
            ):
                x = torch.empty(tuple(shape), dtype=example.dtype)
                with Recorder() as recorder:
                    model(x)
                return [given, *recorder.calls]
        x = repeated(example, shape)
        try:
            with Recorder() as recorder:
                model(x)
        except Exception:  # whatever layer does not take that size
            return None
    return [given, *recorder.calls]


@contextmanager
def _with_its_tensors(model: nn.Module) -> Iterator[None]:
    """What the modules keep, as it was: `self.mean = self.mean.to(x)` in a forward would keep no numbers."""
    kept = [(names, dict(names)) for module in model.modules() for names in (vars(module), module._buffers)]
    try:
        yield
    finally:
        for names, before in kept:
            for name in names.keys() - before.keys():
                del names[name]
            names.update(before)


def are_large(calls: Sequence[Call], shape: Sequence[int]) -> bool:
    """Whether calls without numbers, at some milliseconds each, are sooner done than those with them.

    Args:
        calls: Of a network at one shape of its input.
        shape: Of the input to come.
    """
    elements = sum(prod(each) for call in calls for each in call.shapes)
    (own,) = calls[0].shapes
    return elements * prod(shape) > _LARGE * len(calls) * prod(own)


@contextmanager
def quietly(name: str) -> Iterator[None]:
    """Without what one of torch's loggers has to say of each size or line that it cannot take."""
    logger = logging.getLogger(name)
    logger.addFilter(_nothing)
    try:
        yield
    finally:
        logger.removeFilter(_nothing)


def _nothing(_: logging.LogRecord) -> bool:
    return False


def same_way(some: Sequence[Call] | None, others: Sequence[Call] | None) -> bool:
    """Whether the same functions were called, in the same order."""
    if some is None or others is None:
        return False
    return [call.name for call in some] == [call.name for call in others]


def repeated(example: Tensor, shape: Sequence[int]) -> Tensor:
    """An input of a shape that holds the example's values, over and over."""
    if tuple(shape) == tuple(example.shape):
        return example.clone()
    repeats = [-(-size // own) for size, own in zip(shape, example.shape, strict=True)]
    return example.repeat(repeats)[tuple(slice(size) for size in shape)].contiguous()
