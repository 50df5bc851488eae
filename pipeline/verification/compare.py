"""How far two computations of the same network are apart: their logits, and layer by layer. Pure functions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.artifacts.check_result import Flip
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
    """Two sets of logits.

    Attributes:
        relative_error: the largest absolute difference, of the largest absolute value wanted. NaN and infinity in
            what was got make it NaN or infinity, which no tolerance admits.
        image, logit: where that is.
        got, want: the two values there.
        agreement: share of the images whose largest logit is the same.
        images: how many there are.
    """

    relative_error: float
    image: int
    logit: int
    got: float
    want: float
    agreement: float
    images: int

    def __str__(self) -> str:
        return f"logit {self.logit} of image {self.image} is {self.got:.6g} and {self.want:.6g} in"


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


def compare(got: "np.ndarray", want: "np.ndarray") -> Comparison:
    """Compare logits.

    Args:
        got, want: float (images, classes).

    Raises:
        GateError: there is nothing to compare, or the shapes differ.
    """
    import numpy as np

    if got.shape != want.shape:
        raise GateError(f"the logits are of shape {got.shape}, and must be of shape {want.shape}.")
    if not got.size:
        raise GateError("there is no image, so nothing was compared.")
    error, (image, *logit) = _largest(got, want)
    at = (image, *logit)
    return Comparison(
        relative_error=error,
        image=image,
        logit=int(np.ravel_multi_index(logit, got.shape[1:])) if logit else 0,
        got=float(got[at]),
        want=float(want[at]),
        agreement=float((got.reshape(len(got), -1).argmax(1) == want.reshape(len(want), -1).argmax(1)).mean()),
        images=len(got),
    )


def mean_error(got: "np.ndarray", want: "np.ndarray") -> float:
    """Each image's largest difference of a logit, on average, of the largest absolute value wanted of all."""
    import numpy as np

    return float(np.abs(got - want).max(1).mean() / _scale(want))


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
        error, at = _largest(got[name].reshape(want[name].shape), want[name])
        if not error <= tolerance:
            is_, must = (float(one.reshape(want[name].shape)[at]) for one in (got[name], want[name]))
            return Departure(name, at, is_, must, error, before, len(common))
        before = name
    return None


def _largest(got: "np.ndarray", want: "np.ndarray") -> tuple[float, tuple[int, ...]]:
    """The largest relative error and its index; the first NaN, if there is one."""
    import numpy as np

    got, want = got.astype(np.float64), want.astype(np.float64)
    with np.errstate(invalid="ignore"):
        errors = np.abs(got - want) / _scale(want)
    at = tuple(int(i) for i in np.unravel_index(np.argmax(errors), errors.shape))  # argmax stops at a NaN
    return float(errors[at]), at


def _scale(want: "np.ndarray") -> float:
    """The largest absolute value wanted; of a network that gives zeros alone, the least number that is none."""
    import numpy as np

    return max(float(np.abs(want).max()), float(np.finfo(np.float32).tiny))
