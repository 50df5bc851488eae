"""What a network is for: the contract of a task.

A task sees a network's outputs as a list of tensors in the order of `repnets.outputs.named`, the first axis the batch,
and of each image one target: a row of a tensor. Which kind of target, and its shape, dtype and unit, is `Targets`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Targets = Literal["label", "mask", "boxes", "picture"]
"""What is known of an image:

label: int64 (N,), the number of its class;
mask: int64 (N, H, W), a class for each pixel of the network's input, 255 where it is not told;
boxes: float32 (N, most, 5), rows of class, x1, y1, x2, y2 in pixels of the input, class -1 where there is no more;
picture: float32 (N, C, s H, s W), R, G, B in [0, 1], what the network is to give.
"""
IGNORED = 255
"""Class of a pixel that is neither trained on nor counted."""


class Task(Protocol):
    """One kind of use. A task of the user's own is an object, or the call of one, that has these.

    Attributes:
        name: of the task.
        metric: name of the score; see `pipeline.artifacts.metric`.
        targets: which kind it takes.
    """

    name: str
    metric: str
    targets: Targets

    def require(self, outputs: "Sequence[Tensor]", size: tuple[int, int], scale: int) -> None:
        """ValueError, in words, where the outputs for two images are not those of this task.

        Args:
            outputs: of a network.
            size: height and width of its input, pixels.
            scale: of restoration, how many times as large its picture is to be.
        """
        ...

    def loss(self, outputs: "Sequence[Tensor]", targets: "Tensor") -> "Tensor":
        """What training makes less: a scalar of a batch, on its device."""
        ...

    def score(self, outputs: "Sequence[Tensor]", targets: "Tensor") -> float:
        """The metric on all validation images, on the CPU; more is better."""
        ...

    def agreement(self, outputs: "Sequence[Tensor]", others: "Sequence[Tensor]") -> float:
        """How alike two networks' outputs are to someone who uses them, from 0 to 1; needs no target."""
        ...

    def decode(self, outputs: "Sequence[Tensor]") -> list[Any]:
        """What a person wants of each image."""
        ...

    def draw(self, picture: "Tensor", decoded: Any) -> "Tensor":
        """It, drawn on a picture, uint8 (3, H, W) to uint8 (3, H, W): the network's input, of any size."""
        ...


def alone(outputs: "Sequence[Tensor]", axes: int, what: str) -> "Tensor":
    """The one output, of some axes; ValueError, in words, where there are others."""
    if len(outputs) != 1 or outputs[0].dim() != axes:
        given = ", ".join(str(tuple(one.shape)) for one in outputs)
        raise ValueError(f"it gives {given} for two images, and must give {what}")
    return outputs[0]
