"""How good a network is on the validation images, and whether the labels are in another order than the network's."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pipeline import tasks
from pipeline.artifacts.manifest import Preprocessing
from pipeline.artifacts.metric import AGREEMENT, NONE, R2, TOP_1, Metric, plain, shown
from pipeline.data import datasets
from pipeline.data.splits import Split
from pipeline.errors import InputError
from pipeline.tasks.base import Task

if TYPE_CHECKING:
    import torch
    from torch import nn

METRIC_PACKAGES = ("torchmetrics", "pycocotools")
"""What scores are reckoned with, for keys of the store."""
_MUCH_BETTER = 0.2  # of top-1


def share_right(value: float, metric: Metric) -> str:
    """A figure as a sentence says it: ``is right on 98.3% of the validation images``."""
    if metric == TOP_1:
        return f"is right on {value:.2%} of the validation images"
    if metric == R2:
        return f"keeps {value:.2%} of the variance of the float network's outputs (R2)"
    if metric in (AGREEMENT, NONE):
        pictures = "the pictures" if metric == AGREEMENT else "generated images"
        return f"agrees with the float network on {value:.2%} of {pictures}"
    return f"has {plain(metric)} {shown(value, metric)} on the validation images"


def task_of(split: Split, preprocessing: Preprocessing, label_smoothing: float = 0.0) -> Task | None:
    """What a split's images are used for, at a network's size; None where nothing is known of its outputs."""
    name = split.use.task
    return tasks.named(name, split.classes, preprocessing.size, label_smoothing) if name else None


def metric_of(split: Split) -> Metric:
    """What a network is scored by on a split's images: by its task, or, without labels, by how it was in float.

    Of a network of no task it is R2: how much of the variance of the float network's outputs is kept.
    """
    if split.has_labels:
        return tasks.named(split.use.task, split.classes, (1, 1)).metric
    return NONE if split.name == datasets.NONE else AGREEMENT if split.use.task else R2


def scorer(
    network: "Callable[[torch.Tensor], Any]", split: Split, preprocessing: Preprocessing, batch_size: int = 256
) -> "Callable[[Callable[[torch.Tensor], Any]], float]":
    """A function that gives a network's score by `metric_of` on the validation images, on the CPU.

    Args:
        network: in float: what others are held against, where the images have no labels.
        split, preprocessing: of the images.
        batch_size: images in a batch.
    """
    want: Sequence[torch.Tensor] = ()
    if not split.has_labels:
        want, _ = outputs(network, split, preprocessing, batch_size)

    def score(model: "Callable[[torch.Tensor], Any]") -> float:
        got, targets = outputs(model, split, preprocessing, batch_size)
        return score_of(split, preprocessing, got, want, targets)

    return score


def score_of(
    split: Split,
    preprocessing: Preprocessing,
    got: "Sequence[torch.Tensor]",
    want: "Sequence[torch.Tensor]",
    targets: "torch.Tensor",
) -> float:
    """The score by `metric_of` of what a network gives for all validation images.

    Args:
        split, preprocessing: of the images.
        got: its outputs, the first axis the image.
        want: those of the float network; not looked at where the images have labels.
        targets: of the images.
    """
    task = task_of(split, preprocessing)
    if task is None:
        return kept_variance(got, want)
    score = task.score(got, targets) if split.has_labels else task.agreement(got, want)
    if not math.isfinite(score):
        raise InputError(
            f"the metric `{plain(task.metric)}` is {score} on the validation images, so nothing can be judged. Look "
            "for NaN in what the network gives, and for validation images of which nothing is known."
        )
    return score


def outputs(
    model: "Callable[[torch.Tensor], Any]",
    split: Split,
    preprocessing: Preprocessing,
    batch_size: int = 256,
    workers: int = 2,
) -> "tuple[list[torch.Tensor], torch.Tensor]":
    """What a network in evaluation mode, on the CPU, gives for all validation images: each output; and the targets."""
    import torch

    from repnets.outputs import named

    given, targets = [], []
    with torch.inference_mode():
        for images, wanted in split.batches("val", preprocessing, batch_size, workers):
            given.append(list(named(model(images)).values()))
            targets.append(wanted)
    return [torch.cat(parts) for parts in zip(*given, strict=True)], torch.cat(targets)


def kept_variance(got: "Sequence[torch.Tensor]", want: "Sequence[torch.Tensor]") -> float:
    """R2, the coefficient of determination: 1 less the squared difference over the variance; the least of the outputs.

    An output that all but does not vary, such as the centres of a detector's cells, is held by a millionth of its mean
    square in place of its variance.

    Args:
        got, want: the outputs, float, the first axis the image.
    """
    least = 1.0
    for one, other in zip(got, want, strict=True):
        one, other = one.double(), other.double()
        lost, square = float((one - other).square().mean()), float(other.square().mean())
        spread = max(float(other.var(correction=0)), 1e-6 * square)
        kept = 1 - lost / spread if spread else float(lost == 0)
        least = min(least, kept if math.isfinite(kept) else 0.0)
    return max(0.0, least)


def predictions(
    model: "Callable[[torch.Tensor], torch.Tensor]", split: Split, preprocessing: Preprocessing, batch_size: int = 256
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """The class that a classifier in evaluation mode, on the CPU, gives each validation image; and its label."""
    (logits,), labels = outputs(model, split, preprocessing, batch_size)
    return logits.argmax(1), labels


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


def require_fits(model: "nn.Module", arch: str, split: Split, preprocessing: Preprocessing) -> None:
    """Hold what a network gives for two black images to what its task takes, before it is trained or judged.

    Raises:
        InputError: the task cannot be told by such outputs; the loss or the score of it fails, and how.
    """
    import torch

    from repnets.outputs import named

    task = task_of(split, preprocessing)
    if task is None or split.is_of_classifier:
        return
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        given = list(named(copy.deepcopy(model).eval()(torch.zeros(preprocessing.shape(2)))).values())
        try:
            task.require(given, preprocessing.size, split.use.scale)
        except ValueError as error:
            raise InputError(
                f"`{arch}` does not fit `data.task: {task.name}`: {error}. Take a network for that task "
                "(`repnets models` lists some), or set `data.task` to what it is for."
            ) from None
