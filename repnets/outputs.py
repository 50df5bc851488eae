"""What a network gives, however it is nested: by name, and as one row of numbers an image."""

import math
from collections.abc import Sequence

from torch import Tensor
from torch.utils import _pytree as pytree

from repnets.errors import RepnetsError

_MOST_NUMBERS = 1 << 16  # of an image and output, where rows are kept of many images


def named(given: object) -> dict[str, Tensor]:
    """The tensors of a network's output by name, in order.

    Args:
        given: A tensor, whose name is empty; or tuples, lists and dicts of tensors, nested. Their keys and places are
            joined by `_`: `{"boxes": a, "masks": (b, c)}` has `boxes`, `masks_0` and `masks_1`; of a tuple alone they
            are `output_0` and so on.

    Raises:
        RepnetsError: There is no tensor, or something else than tensors.
    """
    found: dict[str, Tensor] = {}
    for path, leaf in pytree.tree_flatten_with_path(given)[0]:
        keys = [_text(key) for key in path]
        if keys and keys[0].isdecimal():
            keys.insert(0, "output")
        name = "".join(one if one.isalnum() and one.isascii() else "_" for one in "_".join(keys))
        if not isinstance(leaf, Tensor):
            where = f" at `{'.'.join(keys)}`" if keys else ""
            raise RepnetsError(f"the network gives a {type(leaf).__name__}{where}, and must give tensors alone")
        if name in found:
            raise RepnetsError(f"two outputs of the network are named `{name}`; give them other keys")
        found[name] = leaf
    if not found:
        raise RepnetsError("the network gives no tensor")
    return found


def rows(given: object) -> Tensor:
    """All outputs one after the other: float (images, numbers). A lone (images, numbers) is given back as it is.

    Args:
        given: As for `named`; the first axis of each tensor is the batch.
    """
    import torch

    flat = [one.flatten(1) if one.dim() > 1 else one[:, None] for one in named(given).values()]
    kind = next((one.dtype for one in flat if one.is_floating_point()), torch.float32)
    return torch.cat([one.to(kind) for one in flat], 1) if len(flat) > 1 else flat[0].to(kind)


class Balanced:
    """Rows in which each of several outputs weighs alike, and of large ones some numbers stand for all.

    The first call fixes the scales: each output is centred, and divided by its spread there (at least a thousandth of
    its root mean square) and by the root of its count. What a lone output of no more than 65,536 numbers an image gives
    is `rows`.
    """

    def __init__(self) -> None:
        self._scales: list[tuple[float, float]] | None = None

    def __call__(self, given: object) -> Tensor:
        import torch

        parts = [_thinned(rows(one)) for one in named(given).values()]
        if len(parts) == 1:
            return parts[0]
        if self._scales is None:
            self._scales = [_scale(one.detach()) for one in parts]
        return torch.cat([(one - mean) / by for one, (mean, by) in zip(parts, self._scales, strict=True)], 1)


def widths(given: object) -> Sequence[int]:
    """How many numbers an image each output has, in the order of `rows`."""
    return [math.prod(one.shape[1:]) for one in named(given).values()]


def _thinned(one: Tensor) -> Tensor:
    return one[:, :: math.ceil(one.shape[1] / _MOST_NUMBERS)]


def _scale(one: Tensor) -> tuple[float, float]:
    values = one.double()
    spread = max(float(values.std(correction=0)), 1e-3 * float(values.square().mean().sqrt()))
    return float(values.mean()), (spread or 1.0) * math.sqrt(one.shape[1])


def _text(key: object) -> str:
    inner = getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))
    return str(inner)
