"""How far two computations of the same network are apart: their outputs, and layer by layer. Pure functions.

Outputs come as (images, numbers): all outputs of an image one after the other, as `repnets.outputs.rows` gives them.
Errors are relative to the largest absolute value wanted of the output that the number belongs to.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.artifacts.check_result import Flip
from pipeline.artifacts.export_result import TensorFacts
from pipeline.errors import GateError

if TYPE_CHECKING:
    import numpy as np

EXACT = 1e-5
"""Of the largest logit: what a converter may change where both sides compute in float32 on the same weights."""

EXACT_BUT_FOR_CONSTANTS = 2**-11
"""The same where numbers other than weights stand in a float16 file: the relative rounding of one such number."""

EXACT_INT8 = 0.5 / 127
"""What a converter may change in int8, on average over the images: half a digit of the largest logit. Runtimes round a
value that lies between two integers their own way, which moves a few images of a hundred by a digit or two."""

SLACK = 2
"""Times the error that rounding alone causes in the network: runtimes round in other places than torch."""

TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "int8": 5e-2}
"""Of the largest logit: what a file may lose against its program, by its precision. In int8 the program has the same
integers, and that is 6 digits of 127; 3 were seen where a runtime computes the rest in float32, 5 in float16."""


@dataclass(frozen=True)
class Comparison:
    """Two sets of outputs.

    Attributes:
        relative_error: the largest absolute difference, of the largest absolute value wanted. NaN and infinity in
            what was got make it NaN or infinity, which no tolerance admits.
        image, logit: where that is; the number's place in the row.
        got, want: the two values there.
        agreement: share of the images whose largest number is the same.
        images: how many there are.
        place: of the number, in words: ``logit 3``, or ``boxes[2, 0]``.
    """

    relative_error: float
    image: int
    logit: int
    got: float
    want: float
    agreement: float
    images: int
    place: str = ""

    @property
    def where(self) -> str:
        """The number in words."""
        return f"{self.place or f'logit {self.logit}'} of image {self.image}"

    def __str__(self) -> str:
        return f"{self.where} is {self.got:.6g} and {self.want:.6g} in"


@dataclass(frozen=True)
class Departure:
    """The first layer whose output is not what it should be.

    Attributes:
        layer: its name.
        index: where in its output the difference is largest.
        got, want: the two values there.
        relative_error: of the largest value that the layer should give.
        before: the layer before it, which is as it should be; None where it is the first that was compared.
        compared: how many layers were compared.
    """

    layer: str
    index: tuple[int, ...]
    got: float
    want: float
    relative_error: float
    before: str | None
    compared: int

    def __str__(self) -> str:
        so_far = f"{self.before} before it still agrees" if self.before else "it is the first that was compared"
        return (
            f"the first layer that departs is {self.layer}: {list(self.index)} of its output is {self.got:.6g} and "
            f"must be {self.want:.6g}, {self.relative_error:.1e} of its largest value; {so_far}"
        )


def compare(got: "np.ndarray", want: "np.ndarray", outputs: Sequence[TensorFacts] = ()) -> Comparison:
    """Compare outputs.

    Args:
        got, want: float (images, numbers).
        outputs: that the numbers are of, in order; default: one, of logits.

    Raises:
        GateError: there is nothing to compare, or the shapes differ.
    """
    import numpy as np

    if got.shape != want.shape:
        raise GateError(f"the outputs are of shape {got.shape}, and must be of shape {want.shape}.")
    if not got.size:
        raise GateError("there is no image, so nothing was compared.")
    error, (image, *logit) = _largest(got, want, _scale(want, outputs))
    at = (image, *logit)
    number = int(np.ravel_multi_index(logit, got.shape[1:])) if logit else 0
    return Comparison(
        relative_error=error,
        image=image,
        logit=number,
        got=float(got[at]),
        want=float(want[at]),
        agreement=float((got.reshape(len(got), -1).argmax(1) == want.reshape(len(want), -1).argmax(1)).mean()),
        images=len(got),
        place=_place(number, outputs),
    )


def mean_error(got: "np.ndarray", want: "np.ndarray", outputs: Sequence[TensorFacts] = ()) -> float:
    """Each image's largest difference of a number, on average, of the largest absolute value wanted of its output.

    Of an output of more than a thousand numbers, such as a map, it is the mean of the largest hundredth: somewhere in a
    map a value always lies between two integers, so that its largest difference is a digit of int8 or none.
    """
    import numpy as np

    errors = np.abs(got - want) / _scale(want, outputs)
    of_outputs = [_largest_of_rows(part) for part in parts(errors, outputs)]
    return float(np.max(of_outputs, axis=0).mean())


def _largest_of_rows(errors: "np.ndarray") -> "np.ndarray":
    """Each row's largest error, of more than a thousand the mean of the largest hundredth; NaN where there is one."""
    import numpy as np

    count = errors.shape[1]
    taken = 1 if count <= 1000 else count // 100
    return np.partition(errors, count - taken, axis=1)[:, count - taken :].mean(1)  # NaN is sorted last


def width(output: TensorFacts) -> int:
    """How many numbers an output has of each image."""
    return math.prod(output.shape[1:])


def parts(numbers: "np.ndarray", outputs: Sequence[TensorFacts]) -> "list[np.ndarray]":
    """(images, numbers) of all outputs, by output."""
    import numpy as np

    return np.split(numbers, np.cumsum(list(map(width, outputs)), dtype=int)[:-1], axis=1)


def _place(number: int, outputs: Sequence[TensorFacts]) -> str:
    """Where a number of a row is, in words; empty for logits."""
    import numpy as np

    if len(outputs) < 2 and all(one.name == "logits" for one in outputs):
        return ""
    for one in outputs:
        if number < width(one):
            index = ", ".join(map(str, np.unravel_index(number, one.shape[1:]) if one.shape[1:] else ()))
            return f"{one.name}[{index}]"
        number -= width(one)
    return ""


def flips(got: "np.ndarray", want: "np.ndarray") -> list[Flip]:
    """The images whose best class differs, the widest margin first.

    Args:
        got, want: float (images, classes).
    """
    import numpy as np

    classes, must = got.argmax(1), want.argmax(1)
    scale = _scale(want)
    found = [
        Flip(int(i), int(classes[i]), int(must[i]), float(want[i, must[i]] - want[i, classes[i]]) / scale)
        for i in np.flatnonzero(classes != must)
    ]
    return sorted(found, key=lambda flip: -flip.margin)


def probabilities(logits: "np.ndarray") -> "np.ndarray":
    """Softmax of (images, classes): what is comparable where one side gives only that, or its logarithm."""
    import numpy as np

    shares = np.exp(logits - logits.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


def first_departure(
    got: "Mapping[str, np.ndarray]", want: "Mapping[str, np.ndarray]", tolerance: float
) -> Departure | None:
    """Compare layer by layer, in the order of `want`, those that both name and that have equally many values.

    Args:
        got, want: float arrays by the layer's name, in order of execution.
        tolerance: largest difference of a layer, of the layer's largest value.

    Returns:
        The first layer that differs by more, or holds NaN or infinity where it must not; None where none does.
    """
    before = None
    common = [name for name in want if name in got and got[name].size == want[name].size > 0]
    for name in common:
        error, at = _largest(got[name].reshape(want[name].shape), want[name], _scale(want[name]))
        if not error <= tolerance:
            is_, must = (float(one.reshape(want[name].shape)[at]) for one in (got[name], want[name]))
            return Departure(name, at, is_, must, error, before, len(common))
        before = name
    return None


def _largest(got: "np.ndarray", want: "np.ndarray", scale: "float | np.ndarray") -> tuple[float, tuple[int, ...]]:
    """The largest relative error and its index; the first NaN, if there is one."""
    import numpy as np

    got, want = got.astype(np.float64), want.astype(np.float64)
    with np.errstate(invalid="ignore"):
        errors = np.abs(got - want) / scale
    at = tuple(int(i) for i in np.unravel_index(np.argmax(errors), errors.shape))  # argmax stops at a NaN
    return float(errors[at]), at


def _scale(want: "np.ndarray", outputs: Sequence[TensorFacts] = ()) -> "float | np.ndarray":
    """The largest absolute value wanted, of several outputs by the number; of zeros alone the least that is none."""
    import numpy as np

    if len(outputs) > 1:
        return np.repeat([_scale(part) for part in parts(want, outputs)], list(map(width, outputs)))
    return max(float(np.abs(want).max()), float(np.finfo(np.float32).tiny))
