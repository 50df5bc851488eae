"""Samples of a network with several inputs, of a data set of the user's own or made by a seed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.artifacts.manifest import Preprocessing, image_size_of
from pipeline.artifacts.samples import InputShape
from pipeline.data import generated
from pipeline.data.datasets import NONE, UNKNOWN, is_own
from pipeline.errors import InputError

if TYPE_CHECKING:
    import torch

Items = Callable[[Sequence[Sequence[int]]], Sequence[Sequence[Any]]]


def preprocessing(inputs: Mapping[str, Sequence[int]], classes: Sequence[str]) -> Preprocessing:
    """Of a network of several inputs, which are given to it as they are.

    Args:
        inputs: the shape of one sample of each, by its name.
        classes: of a classifier.
    """
    shapes = tuple(InputShape(name, tuple(shape)) for name, shape in inputs.items())
    size = next((image_size_of(one.shape) for one in shapes if len(one.shape) == 3), 1)
    return Preprocessing(size, (), (), tuple(classes), inputs=shapes)


def batches(
    name: str, items: Items, numbers: Sequence[int], inputs: Sequence[InputShape], batch_size: int
) -> "Iterator[tuple[torch.Tensor, torch.Tensor]]":
    """Samples in fixed order, float32 (n, numbers), and their targets.

    Args:
        name: of the data set.
        items: of a split: gives the items of some numbers.
        numbers: of the samples.
        inputs: of the network.
        batch_size: samples in a batch.

    Raises:
        InputError: the data set has one image for each, gives other inputs, or is no longer that of the split.
    """
    import torch

    chunks = [list(numbers[at : at + batch_size]) for at in range(0, len(numbers), batch_size)]
    if is_own(name):
        for chunk in items(chunks):
            samples, wanted = zip(*(item.read_sample(inputs) for item in chunk), strict=True)
            yield torch.cat(samples), torch.cat(wanted)
    elif name == NONE:
        made = generated.samples(inputs)
        for chunk in chunks:
            yield made[chunk], torch.full((len(chunk),), UNKNOWN)
    else:
        raise InputError(
            f"the network takes several inputs, {' and '.join(one.name for one in inputs)}, and {name} has one "
            "image for each. Set `data.name` to none, or to a data set of your own."
        )
