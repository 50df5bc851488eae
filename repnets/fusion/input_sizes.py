"""The entry of a fused network: an input of a size that it does not take is refused."""

from collections.abc import Mapping

from torch import Tensor, nn

from repnets.errors import RepnetsError
from repnets.fusion.sizes import FreeSize, axis_names, by_name, in_words


class InputSizes(nn.Module):
    """Gives its input as it is, or raises a `RepnetsError` that says which sizes the network takes.

    Args:
        shape: Of the example that the network was captured with.
        free: By axis: the sizes that it takes. Those of the other axes are fixed.
    """

    def __init__(self, shape: tuple[int, ...], free: Mapping[int, FreeSize]) -> None:
        super().__init__()
        self.shape, self.free = tuple(shape), dict(free)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != len(self.shape):
            raise RepnetsError(
                f"The input has {x.dim()} dimensions, and this network takes {len(self.shape)}: "
                f"{', '.join(axis_names(len(self.shape)))}."
            )
        for axis, own in enumerate(self.shape):
            size, free = x.shape[axis], self.free.get(axis)
            if free is None:
                if size != own:
                    raise RepnetsError(self._refusal(axis, size, f"{own} alone"))
            elif size not in free:
                raise RepnetsError(self._refusal(axis, size, free.sizes))
        return x

    def extra_repr(self) -> str:
        return in_words(self.shape, by_name(self.free, len(self.shape)))

    def _refusal(self, axis: int, size: int, taken: str) -> str:
        name = axis_names(len(self.shape))[axis]
        return (
            f"The input's {name} is {size}, and this network takes {taken}: it was captured for that, and would be "
            f"wrong elsewhere. Give it that, or fuse the model again with an example whose {name} is {size}."
        )
