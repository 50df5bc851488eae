"""What a call in a graph costs: by which the engine decides whether folding gains anything."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod

from torch import fx

from repnets.fusion import conv_params
from repnets.fusion.affine_conv import AffineConv
from repnets.fusion.graph import VIEWS, multiply_accumulates

Shapes = Mapping[fx.Node, tuple[int, ...]]


@dataclass(frozen=True)
class Work:
    """What one call does, for one input of the example's size.

    Attributes:
        macs: Multiply-accumulates.
        bytes: Read and written, of weights and feature maps, four a number.
    """

    macs: int
    bytes: int


@dataclass(frozen=True)
class CostModel:
    """Seconds for a call: multiply-accumulates, bytes and the call itself, one after the other.

    Any function of a `Work` to a number can stand in for it. Only the ratios matter. The defaults are those of one
    core of a CPU and of small convolutions, for which alone the answer is ever close.

    Attributes:
        macs_per_second: Default 4e9.
        bytes_per_second: Default 1e10.
        seconds_per_call: Default 1e-7: small, so that no more is computed only to make fewer calls.
    """

    macs_per_second: float = 4e9
    bytes_per_second: float = 1e10
    seconds_per_call: float = 1e-7

    def __call__(self, work: Work) -> float:
        return work.macs / self.macs_per_second + work.bytes / self.bytes_per_second + self.seconds_per_call


Cost = Callable[[Work], float]


def work_of_node(node: fx.Node, shapes: Shapes) -> Work:
    """The work of a call as it stands in the graph. A view reads and writes nothing."""
    if node.target in VIEWS:
        return Work(0, 0)
    numbers = prod(shapes[node]) + sum(prod(shapes[one]) for one in node.all_input_nodes if one in shapes)
    return Work(multiply_accumulates(node, shapes), 4 * numbers)


def works_of_operator(op: AffineConv, source: fx.Node, target: fx.Node, shapes: Shapes) -> list[Work]:
    """The work of the calls that make `target` of `source` by the layer of `op`.

    Padding that differs at the two ends, which the layer makes up for by zero taps, is counted as if it were done
    before: runtimes pad at either end on the way, and the kernels that they have are of windows without such taps.
    """
    shape = conv_params.conv_shape(op)
    read, made = prod(shapes[source]), prod(shapes[target])
    if op.pooled:
        pooled = prod(shapes[source][:2])
        return [Work(0, 4 * (read + pooled)), Work(shape.weights, 4 * (pooled + shape.weights + 2 * made))]
    padding = 0
    if ends := conv_params.uneven_padding(op):
        outer, sizes = shapes[source][: -len(ends)], shapes[source][-len(ends) :]
        padded = prod(outer) * prod(size + sum(both) for size, both in zip(sizes, ends, strict=True))
        padding, read = read + padded, padded
    works = [
        Work(shape.macs(prod(shapes[source]), made), 4 * (padding + read + shape.weights + op.out_channels + made))
    ]
    if op.border is not None:
        ones = replace(shape, in_channels=1, groups=1)
        read //= op.in_channels
        works += [Work(ones.macs(read, made), 4 * (read + ones.weights + made)), Work(0, 12 * made)]
    return works


def works_of_scale(op: AffineConv, target: fx.Node, shapes: Shapes) -> list[Work]:
    """The work of the two calls that make `target` by a factor and a term for each channel.

    Each is counted as one batch norm, so that they take the place of more than two calls and never of two.
    """
    return [Work(0, 4 * (2 * prod(shapes[target]) + 4 * op.out_channels))] * 2
