"""How good a network is on the validation images, and whether the labels are in another order than the network's."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.artifacts.manifest import Preprocessing
from pipeline.artifacts.verify_result import Metric
from pipeline.data.datasets import NONE
from pipeline.data.splits import Split

if TYPE_CHECKING:
    import numpy as np
    import torch

_MUCH_BETTER = 0.2  # of top-1


def share_right(share: float, metric: Metric) -> str:
    """A figure as a sentence says it: ``is right on 98.3% of the validation images``."""
    if metric == "R2":
        return f"keeps {share:.2%} of the variance of the float network's outputs (R2)"
    if metric != "top-1":
        pictures = "the pictures" if metric == "agreement" else "generated images"
        return f"agrees with the float network on {share:.2%} of {pictures}"
    return f"is right on {share:.2%} of the validation images"


def metric_of(split: Split) -> Metric:
    """What is told of a network on a split's images: how often it is right, or, without labels, as it was in float.

    Of a network without classes it is R2: how much of the variance of the float network's outputs is kept.
    """
    if split.has_labels:
        return "top-1"
    return "none" if split.name == NONE else "agreement" if split.classes else "R2"


def top1_accuracy(
    model: "Callable[[torch.Tensor], torch.Tensor]",
    split: Split,
    preprocessing: Preprocessing,
    batch_size: int = 256,
    labels: "torch.Tensor | None" = None,
) -> float:
    """Share of the validation images whose class a network in evaluation mode, on the CPU, gets right.

    Args:
        labels: int64 (n,), to take in place of the images' own, as for those that have none.
    """
    guessed, own = predictions(model, split, preprocessing, batch_size)
    return int((guessed == (own if labels is None else labels)).sum()) / split.size("val")


def scorer(
    network: "Callable[[torch.Tensor], Any]", split: Split, preprocessing: Preprocessing, batch_size: int = 256
) -> "Callable[[Callable[[torch.Tensor], Any]], float]":
    """A function that gives a network's score by `metric_of` on the validation images, on the CPU.

    Args:
        network: in float: what others are held against, where the images have no labels.
        split, preprocessing: of the images.
        batch_size: images in a batch.
    """
    import torch

    if split.classes:
        right = None if split.has_labels else predictions(network, split, preprocessing, batch_size)[0]

        return lambda model: top1_accuracy(model, split, preprocessing, batch_size, right)

    from repnets.outputs import rows, widths

    def given(model: Callable[[torch.Tensor], Any]) -> tuple[torch.Tensor, Sequence[int]]:
        with torch.inference_mode():
            found = [model(images) for images, _ in split.batches("val", preprocessing, batch_size)]
        return torch.cat([rows(one) for one in found]), widths(found[0])

    want, of_outputs = given(network)
    return lambda model: kept_variance(given(model)[0].numpy(), want.numpy(), of_outputs)


def kept_variance(got: "np.ndarray", want: "np.ndarray", of_outputs: Sequence[int]) -> float:
    """R2, the coefficient of determination: 1 less the squared difference over the variance; the least of the outputs.

    An output that all but does not vary, such as the centres of a detector's cells, is held by a millionth of its mean
    square in place of its variance.

    Args:
        got, want: float (images, numbers), of all outputs one after the other.
        of_outputs: how many numbers each has.
    """
    import numpy as np

    least, begin = 1.0, 0
    for count in of_outputs:
        one, other = (side[:, begin : begin + count].astype(np.float64) for side in (got, want))
        begin += count
        lost, square = (float(np.square(side).mean()) for side in (one - other, other))
        spread = max(float(other.var()), 1e-6 * square)
        kept = 1 - lost / spread if spread else float(lost == 0)
        least = min(least, kept if np.isfinite(kept) else 0.0)
    return max(0.0, least)


def predictions(
    model: "Callable[[torch.Tensor], torch.Tensor]", split: Split, preprocessing: Preprocessing, batch_size: int = 256
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """The class that a network in evaluation mode, on the CPU, gives each validation image; and its label."""
    import torch

    with torch.inference_mode():
        found = [
            (model(images).argmax(1), labels) for images, labels in split.batches("val", preprocessing, batch_size)
        ]
    guessed, labels = zip(*found, strict=True)
    return torch.cat(guessed), torch.cat(labels)


def better_order(guessed: "torch.Tensor", labels: "torch.Tensor", classes: int) -> tuple[list[int], float] | None:
    """Another order of the classes that fits a network's predictions much better than that of the labels.

    The order is taken from half of the images and tried on the others, so that chance finds none.

    Args:
        guessed, labels: int64 (n,), the network's class of each image, and its label.
        classes: how many there are.

    Returns:
        The label that each output of the network means, and the top-1 on the other half in that order; None where no
        order is much better.
    """
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    first, second = (np.stack([guessed[half::2].numpy(), labels[half::2].numpy()]) for half in (0, 1))
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, tuple(first), 1)
    counts = 2 * counts + np.eye(classes, dtype=np.int64)  # a class that is never seen stays where it is
    _, order = linear_sum_assignment(counts, maximize=True)
    accuracy, reordered = (float(np.mean(found == second[1])) for found in (second[0], order[second[0]]))
    return (order.tolist(), reordered) if reordered > accuracy + _MUCH_BETTER else None
