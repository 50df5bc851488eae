"""The check of one folded region: the layer that took its place against the nodes themselves."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from math import inf

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from repnets.fusion.affine_conv import AffineConv
from repnets.fusion.constants import Constants
from repnets.fusion.graph import aten, sizes_at
from repnets.fusion.plan import Region
from repnets.relative_error import relative_error

_MOST_STEPS = 64
_SizeOf = Callable[[int | torch.SymInt], int]


def region_error(
    region: Region, exact: nn.Module, constants: Constants, images: Sequence[Sequence[int]]
) -> tuple[float, float]:
    """How far a region's layer is from its nodes, relative to the largest value, on random input of two sizes.

    Args:
        region: Which nodes; they are run in float64.
        exact: The layer, float64.
        constants: Of the graph.
        images: Shapes of the network's input that it takes, which the sizes inside the graph follow from.

    Returns:
        The larger error of the layer in float64, and that of the layer rounded to float32; infinite where the
        nodes ran at no size.
    """
    single = {name: tensor.float() for name, tensor in exact.named_parameters()}
    generator = torch.Generator().manual_seed(0)

    def errors_at(shape: Sequence[int], size_of: _SizeOf) -> list[float]:
        x = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
        wanted = _run(region, constants, x, size_of)
        return [relative_error(exact(x), wanted), relative_error(functional_call(exact, single, x.float()), wanted)]

    shape = region.source.meta["val"].shape
    are_tokens = len(shape) > 2 and not region.operator.stride and not region.operator.pooled
    if are_tokens or any(
        one not in constants and _is_number(one) for node in region.body for one in node.all_input_nodes
    ):
        # the nodes follow the size of the image: the region is run at sizes that an image can give it
        sizes = [sizes_at(region.source.graph, image) for image in images]
        errors = [errors_at([*map(size_of, shape)], size_of) for size_of in sizes]
    else:
        batch = shape[0] if isinstance(shape[0], int) else 2
        errors = []
        for steps in range(2, _MOST_STEPS):
            with suppress(RuntimeError):  # too small for a crop or a window on the way
                errors.append(errors_at([batch, shape[1], *_roomy(region, steps)], int))
            if len(errors) == 2:
                break
        if not errors and all(isinstance(size, int) for size in shape[1:]):  # a constant has the size of the map
            errors.append(errors_at([batch, *shape[1:]], int))
        if not errors:
            return inf, inf
    return tuple(torch.tensor(errors, dtype=torch.float64).amax(0).tolist())  # amax, unlike max(), lets a NaN through


def _roomy(region: Region, steps: int) -> list[int]:
    """A size of the source at which some positions see the border and some do not."""
    op: AffineConv = region.operator
    own = region.source.meta["val"].shape[2:]
    if not op.stride:
        return [size if isinstance(size, int) else steps + place for place, size in enumerate(own)]
    roomy = [k - 1 + steps * s + steps for k, s in zip(op.extent, op.stride, strict=True)]
    if any(node.target is aten.slice_scatter.default for node in region.body):  # at places that go by a fixed size
        return [size if isinstance(size, int) else free for size, free in zip(own, roomy, strict=True)]
    return roomy


def _run(region: Region, constants: Constants, x: Tensor, size_of: _SizeOf) -> Tensor:
    """What the region's own nodes make of `x`, with their parameters in float64."""
    values = {region.source: x}

    def value(node: fx.Node) -> Tensor | int:
        if node in values:
            return values[node]
        return constants.value(node) if node in constants else size_of(node.meta["val"])

    for node in region.body:
        values[node] = node.target(*fx.map_arg(node.args, value), **fx.map_arg(node.kwargs, value))
    return values[region.target]


def _is_number(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), (int, torch.SymInt))
