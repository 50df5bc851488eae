"""A data set of the user's own, `module.path:name`: pictures and what is known of each, given by code.

The name is a class or function that is called with a part, ``train`` or ``val``, and returns a sequence: of each number
a pair of a picture and its target. For a network of several inputs, a tuple or dict of them, arrays as the network
takes them, stands in the place of the picture; where no task is known, the tuple or dict is all. Every item is read
once when the split is made, and held against its digest whenever it is read again.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import own_code
from pipeline.artifacts.samples import InputShape
from pipeline.errors import InputError
from pipeline.tasks.base import IGNORED, Targets

if TYPE_CHECKING:
    import numpy as np
    import torch

    _Given = np.ndarray | tuple[np.ndarray, ...] | dict[str, np.ndarray]

PARTS = ("train", "val")
_AXES = {"label": 0, "mask": 2}
_WANTED = {
    "label": "the number of a class",
    "mask": "numbers of classes (H, W)",
    "boxes": "boxes (m, 5), rows of class, x1, y1, x2, y2,",
}


@dataclass(frozen=True)
class OwnItem:
    """An item of the user's data set.

    Attributes:
        number: of the image in the split.
        reference: `module.path:name`.
        source: ``train/17``: the part, and the number in it.
        kind: of the target; None: the inputs are all.
        classes: how many there are; 0 where there are none.
        sha256: that picture and target must have; None to take them as they are.
    """

    number: int
    reference: str
    source: str
    kind: Targets | None
    classes: int
    sha256: str | None = None

    def read(self) -> "tuple[torch.Tensor, torch.Tensor]":
        """uint8 (1, 3, H, W), and a row of `pipeline.tasks.base.Targets`; boxes and masks in the picture's pixels.

        Raises:
            InputError: the user's code failed, gave something else, or another pair than when the split was made.
        """
        import torch

        given, target = self._held()
        if not hasattr(given, "shape"):
            raise InputError(
                f"`{self.reference}` gives several inputs for {self.source}, and the network takes one picture. Say "
                "the shapes of the inputs: `inputs: {left: [3, 64, 64], ...}` under `data`."
            )
        return torch.from_numpy(given)[None], torch.from_numpy(target)[None]

    def read_sample(self, inputs: Sequence[InputShape]) -> "tuple[torch.Tensor, torch.Tensor]":
        """float32 (1, numbers), all inputs one after the other, and a row of the target.

        Raises:
            InputError: as `read`; the inputs are not those.
        """
        import numpy as np
        import torch

        given, target = self._held()
        found = given if isinstance(given, dict) else dict(zip((one.name for one in inputs), given, strict=False))
        shapes = {name: value.shape for name, value in found.items()}
        if len(given) != len(inputs) or shapes != {one.name: one.shape for one in inputs}:
            told = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            wanted = ", ".join(f"{one.name} {list(one.shape)}" for one in inputs)
            raise InputError(
                f"`{self.reference}` gives {len(given)} inputs for {self.source}, {told}, and the network takes "
                f"{wanted}, by `inputs` in config.yaml. Give a tuple of them in this order, or a dict."
            )
        row = np.concatenate([found[one.name].ravel() for one in inputs]).astype(np.float32)
        return torch.from_numpy(row)[None], torch.from_numpy(target)[None]

    def digest(self) -> str:
        """Sha256 of picture or inputs, and of the target. InputError as `read`."""
        return _digest(*self._pair())

    def _held(self) -> "tuple[_Given, np.ndarray]":
        """The pair, if it is the one that the split was made with."""
        given, target = self._pair()
        if self.sha256 is not None and _digest(given, target) != self.sha256:
            raise InputError(
                f"`{self.reference}` gives another pair for {self.source} than when the split was made. Run `python -m "
                "pipeline split` again; a data set must give the same each time, so leave augmentation to training."
            )
        return given, target

    def _pair(self) -> "tuple[_Given, np.ndarray]":
        """A picture or several inputs, and the target; -1 where there is none."""
        import numpy as np

        part, number = self.source.split("/")
        pair = own_code.made(
            self.reference, lambda: load(self.reference, part)[int(number)], f"failed at number {number} of {part}"
        )
        if self.kind is None:
            return self._inputs(pair), np.array(-1)
        if not (isinstance(pair, tuple | list) and len(pair) == 2):
            raise InputError(
                f"`{self.reference}` gives a {type(pair).__name__} for {self.source}, and must give a pair of a "
                "picture and its target."
            )
        is_several = isinstance(pair[0], tuple | dict)
        return (self._inputs if is_several else self._pixels)(pair[0]), self._target(pair[1])

    def _inputs(self, given: Any) -> "dict[str, np.ndarray] | tuple[np.ndarray, ...]":
        import numpy as np

        if not isinstance(given, tuple | list | dict):
            raise InputError(
                f"`{self.reference}` gives a {type(given).__name__} for {self.source}, and must give a tuple or dict "
                "of the network's inputs, or set `data.task` or `data.classes` for pairs of those and a target."
            )
        found = {
            name: np.asarray(one) for name, one in (given.items() if isinstance(given, dict) else enumerate(given))
        }
        for name, one in found.items():
            if one.dtype.kind not in "fiub" or not np.isfinite(one.astype(np.float32)).all():
                raise InputError(
                    f"`{self.reference}`: the input {name} of {self.source} is of {one.dtype}, or holds NaN or "
                    "infinity. Give finite numbers, as the network takes them."
                )
        return found if isinstance(given, dict) else tuple(found.values())

    def _pixels(self, given: Any) -> "np.ndarray":
        import numpy as np

        found = np.asarray(given)
        shape = found.shape
        if found.ndim == 2:
            found = found[None]
        elif found.ndim == 3 and found.shape[0] not in (1, 3) and found.shape[2] in (1, 3):
            found = found.transpose(2, 0, 1)
        if found.dtype != np.uint8 or found.ndim != 3 or found.shape[0] not in (1, 3) or not found.size:
            raise InputError(
                f"`{self.reference}` gives a picture of {found.dtype} {shape} for {self.source}. Give a PIL "
                "image, or 8-bit pixels (H, W), (H, W, 3) or (3, H, W)."
            )
        return np.ascontiguousarray(np.broadcast_to(found, (3, *found.shape[1:])))

    def _target(self, given: Any) -> "np.ndarray":
        import numpy as np

        if self.kind == "picture":
            return self._pixels(given)
        try:
            found = np.asarray(given).astype(np.float64)
        except (TypeError, ValueError):
            found = np.array(np.nan)
        if self.kind == "boxes" and not found.size:
            found = found.reshape(0, 5)
        if not self._fits(found):
            of = f", of classes from 0 to {self.classes - 1}" if self.classes else ""
            raise InputError(
                f"`{self.reference}` does not give {_WANTED[self.kind]} as the target of {self.source}{of}. "
                "docs/tasks.md has an example."
            )
        return found.astype(np.float32 if self.kind == "boxes" else np.int64)

    def _fits(self, found: "np.ndarray") -> bool:
        import numpy as np

        labels = found[:, :1] if self.kind == "boxes" and found.ndim == 2 else found
        known = (labels >= 0) & ((labels < self.classes) if self.classes else True)
        if self.kind == "mask":
            known |= labels == IGNORED
        shape = found.ndim == 2 and found.shape[1] == 5 if self.kind == "boxes" else found.ndim == _AXES[self.kind]
        return bool(shape and np.isfinite(found).all() and not (labels % 1).any() and known.all())


@cache
def load(reference: str, part: str) -> Sequence[Any]:
    """A part of the user's data set, made once a process.

    Raises:
        InputError: it cannot be imported or called, or is no sequence.
    """
    own_code.require(reference, "data.name", "mydata:Screws")
    make = own_code.load(reference)
    found = own_code.made(reference, lambda: make(part))
    if not (hasattr(found, "__len__") and hasattr(found, "__getitem__")):
        raise InputError(f"`{reference}` returned a {type(found).__name__}, and must return a sequence: len() and [].")
    return found


def items(reference: str, kind: Targets | None, classes: int) -> dict[str, tuple[OwnItem, ...]]:
    """All pairs, by the part.

    Raises:
        InputError: as `load`; a part has no pair.
    """
    found: dict[str, tuple[OwnItem, ...]] = {}
    begin = 0
    for part in PARTS:
        count = len(load(reference, part))
        if not count:
            raise InputError(f"`{reference}` has no picture in its part {part}, and there must be one.")
        found[part] = tuple(
            OwnItem(begin + number, reference, f"{part}/{number}", kind, classes) for number in range(count)
        )
        begin += count
    return found


def _digest(given: "_Given", target: "np.ndarray") -> str:
    total = hashlib.sha256()
    if isinstance(given, dict):
        total.update(f"{list(given)}\n".encode())
    several = given.values() if isinstance(given, dict) else given if isinstance(given, tuple) else (given,)
    for one in (*several, target):
        total.update(f"{one.dtype.str} {one.shape}\n".encode())
        total.update(one.tobytes())
    return total.hexdigest()
