"""The check of a finished network against the model that it was made of."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from repnets.errors import RepnetsError
from repnets.float64 import in_float64
from repnets.fusion.calls import Recorder
from repnets.fusion.sizes import FreeSize
from repnets.fusion.trial import difference, random_input, run, tolerance

_OF_ROUNDING = 10  # times the model's own error: a network can be as far from it that has other roundings
_BATCH = 3


def checked_sizes(
    model: nn.Module, network: Callable[..., object], examples: Sequence[Tensor], free: Mapping[int, FreeSize]
) -> dict[int, FreeSize]:
    """The free sizes that remain when a network is compared with its model.

    It is compared at the example, for the example's own numbers and for random ones, and at two more sizes of every
    free axis, one odd and one even where it takes both: at one image and at several. Where these differ the axis is
    fixed.

    Args:
        model: In eval mode, on the CPU.
        network: What was made of it. It refuses no size.
        examples: The inputs that it was captured with.
        free: By axis of the input: the sizes that the network takes; of several inputs, the batch that they share.

    Raises:
        RepnetsError: They differ at the example.
    """
    with torch.no_grad():
        apart = _excess(model, network, examples) or _excess(
            model, network, [random_input(one, one.shape) for one in examples]
        )
        if apart:
            raise RepnetsError(
                f"The fused network does not compute what the model does, at the example itself: {apart}. This is a "
                "defect of repnets; report it with the model, and export the model as it is until it is mended."
            )
        if not free:
            return {}
        shape = tuple(examples[0].shape)

        def holds(sizes: Mapping[int, int]) -> bool:
            shapes = [[sizes.get(axis, size) for axis, size in enumerate(one.shape)] for one in examples]
            return not _excess(model, network, list(map(random_input, examples, shapes)))

        more = {axis: _others(shape[axis], size, axis) for axis, size in free.items()}
        kept = set(more)
        together = [{axis: sizes[place] for axis, sizes in more.items()} for place in (0, 1)]
        if not all(map(holds, together)):
            kept = {axis for axis, sizes in more.items() if all(holds({axis: size}) for size in sizes)}
            together = [{axis: sizes[axis] for axis in kept} for sizes in together]
            if not all(map(holds, together)):
                kept = set()
    return {axis: size for axis, size in free.items() if axis in kept}


def _others(own: int, free: FreeSize, axis: int) -> tuple[int, int]:
    """Two more sizes of an axis, near the example's: of both parities where it takes both; one batch of one image."""
    if not axis:
        return (free.min, max(_BATCH, free.min + free.step))
    below = [size for size in range(max(free.min, own - 2 * free.step - 1), own) if size in free]
    above = [own + more * free.step for more in (1, 2)]
    odd = [size for size in (*reversed(below), *above) if size % 2]
    even = [size for size in (*reversed(below), *above) if not size % 2]
    return (odd or even)[0], (even or odd[1:] or odd)[0]


def _excess(model: nn.Module, network: Callable[..., object], inputs: Sequence[Tensor]) -> str:
    """How far a network is from its model beyond what rounding explains, in words; empty where it is not."""
    try:
        with Recorder() as recorder:
            want = run(model, inputs)
        got = run(network, inputs)
    except Exception as error:  # whatever call does not take that size
        return f"it fails with: {error}"
    allowed = tolerance(model, inputs, want, *recorder.dtypes)
    apart = difference(got, want)
    if apart <= allowed:
        return ""
    # some networks make much of a rounding: by how much, the model itself tells when it is computed with and without
    rounding = _rounding(model, inputs, want)
    if apart <= allowed + _OF_ROUNDING * rounding:
        return ""
    return f"they differ by {apart:.1e} of the largest output for {' and '.join(str(tuple(x.shape)) for x in inputs)}"


def _rounding(model: nn.Module, inputs: Sequence[Tensor], want: object) -> float:
    """How much the rounding of numbers, or of weights, changes what a model gives; 0 where it has no float64.

    The fused weights are rounded once more: what that can do shows when those of the model are off by a last digit.
    """
    wide = [x.double() if x.is_floating_point() else x for x in inputs]
    try:
        exact_model = in_float64(model)
        exact = run(exact_model, wide)
        _round_anew(exact_model, model)
        other = run(exact_model, wide)
    except Exception:  # a model that names a dtype of its own
        return 0.0

    def like(one: Tensor) -> Tensor:
        return one.double() if one.is_floating_point() else one

    return max(
        difference(tree_map_only(Tensor, like, want), tree_map_only(Tensor, like, exact)), difference(other, exact)
    )


def _round_anew(model: nn.Module, source: nn.Module) -> None:
    """Move the weights and statistics of a float64 model by the last digit of those that it was made of, in place."""
    generator = torch.Generator().manual_seed(0)
    own = (*source.parameters(), *source.buffers())
    for tensor, rounded in zip((*model.parameters(), *model.buffers()), own, strict=True):
        if rounded.is_floating_point():
            digit = torch.finfo(rounded.dtype).eps
            tensor.mul_(1 + digit * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
