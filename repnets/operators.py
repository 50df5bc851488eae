"""What each feature map of a captured graph is, as an affine convolution of the feature maps before it.

One forward pass gives every node its operators, `operators[node] = {source: operator}`. A rule a kind of
call says how; what no rule knows, a nonlinearity say, is a new beginning and has only itself as a source.
"""

import operator as python
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, fx

from repnets import kernels
from repnets.constants import Constants
from repnets.graphs import ADDITIONS, BATCH_NORM, CONVOLUTIONS, SPLITS, WHOLE, arguments
from repnets.kernels import AffineConv

aten = torch.ops.aten

Operators = dict[fx.Node, AffineConv]  # of one node, by source, sources in the order of the graph
_Change = Callable[[AffineConv], AffineConv | str]


@dataclass(frozen=True)
class _Frame:
    """A map set in a frame of constants, which later calls may overwrite a side at a time."""

    inner: fx.Node
    lo: tuple[int, ...]
    hi: tuple[int, ...]
    sides: Mapping[tuple[int, bool], Tensor]  # (axis, whether at its end) to float64 (channels,)


@dataclass
class Analysis:
    """The operators of a graph's feature maps.

    Attributes:
        constants: The part of the graph that does not depend on the input.
        border: Whether an operator may have a border term.
        operators: Of each feature map, its operators by source; itself is always one.
        obstacles: For a node that a rule knows, why it has no operator, or none from further upstream.
    """

    constants: Constants
    border: bool = False
    operators: dict[fx.Node, Operators] = field(default_factory=dict)
    obstacles: dict[fx.Node, str] = field(default_factory=dict)
    frames: dict[fx.Node, _Frame] = field(default_factory=dict)

    def through(self, before: fx.Node, change: _Change) -> tuple[Operators, str | None]:
        """The operators of `before` after one more change; and the first obstacle met."""
        return _sorted(((source, change(op)) for source, op in self.operators.get(before, {}).items()))


def analyse(graph: fx.Graph, constants: Constants, border: bool = False) -> Analysis:
    """Find the operators of every feature map: a floating tensor (N, C, ...) whose C is a number."""
    analysis = Analysis(constants, border)
    for node in graph.nodes:
        value = node.meta.get("val")
        if node in constants or not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        if value.dim() < 2 or not isinstance(value.shape[1], int):
            continue
        found: Operators = {}
        if node.target in RULES:
            found, obstacle = RULES[node.target](node, analysis)
            if obstacle is not None:
                analysis.obstacles[node] = obstacle
        analysis.operators[node] = {**found, node: kernels.identity(value.shape[1], value.dim() - 2)}
    return analysis


def _sorted(made: Iterable[tuple[fx.Node, AffineConv | str]]) -> tuple[Operators, str | None]:
    found: Operators = {}
    obstacle = None
    for source, one in made:
        if isinstance(one, str):
            obstacle = obstacle or one
        else:
            found[source] = one
    return found, obstacle


# Convolutions and pools


def _convolution(node: fx.Node, analysis: Analysis) -> tuple[Operators, str | None]:
    named = arguments(node)
    weight, bias, source = named["weight"], named["bias"], named["input"]
    constants = analysis.constants
    if not constants.is_whole(weight) or (bias is not None and not constants.is_whole(bias)):
        return {}, "its weight depends on the input"
    shape = tuple(weight.meta["val"].shape)
    rank = len(shape) - 2
    if source.meta["val"].dim() != rank + 2:
        return {}, "its input has no batch dimension"
    stride, dilation = axes(named["stride"], rank), axes(named["dilation"], rank)
    if named["padding"] == "same":
        total = [step * (size - 1) for step, size in zip(dilation, shape[2:], strict=True)]
        pad_lo = tuple(n // 2 for n in total)
        pad_hi = tuple(n - n // 2 for n in total)
    else:
        pad_lo = pad_hi = (0,) * rank if named["padding"] == "valid" else axes(named["padding"], rank)
    op = kernels.from_conv(
        partial(constants.value, weight),
        shape,
        None if bias is None else partial(constants.value, bias),
        stride=stride,
        pad_lo=pad_lo,
        pad_hi=pad_hi,
        dilation=dilation,
        groups=named["groups"],
    )
    return _after(op, source, analysis)


def _linear(node: fx.Node, analysis: Analysis) -> tuple[Operators, str | None]:
    named = arguments(node)
    weight, bias, source = named["weight"], named["bias"], named["input"]
    constants = analysis.constants
    if not constants.is_whole(weight) or (bias is not None and not constants.is_whole(bias)):
        return {}, "its weight depends on the input"
    if source.meta["val"].dim() != 2:
        return {}, None  # the channels of its input come last, and not second
    op = kernels.from_conv(
        partial(constants.value, weight),
        tuple(weight.meta["val"].shape),
        None if bias is None else partial(constants.value, bias),
        **dict.fromkeys(("stride", "pad_lo", "pad_hi", "dilation"), ()),
    )
    return _after(op, source, analysis)


def _average_pool(node: fx.Node, analysis: Analysis) -> tuple[Operators, str | None]:
    named = arguments(node)
    source = named["self"]
    rank = source.meta["val"].dim() - 2
    size, padding = axes(named["kernel_size"], rank), axes(named["padding"], rank)
    stride = axes(named["stride"] or size, rank)
    if named["ceil_mode"]:
        return {}, "ceil_mode averages its last window over fewer positions, at some sizes"
    if any(padding) and not named["count_include_pad"]:
        return {}, "count_include_pad=False averages over fewer positions at the border"
    divisor = named.get("divisor_override") or int(torch.tensor(size).prod())
    op = kernels.average_pool(source.meta["val"].shape[1], size, stride, padding, divisor)
    return _after(op, source, analysis)


def _after(outer: AffineConv, source: fx.Node, analysis: Analysis) -> tuple[Operators, str | None]:
    """`outer` on the feature map `source`, and on all that it is made of."""
    if source not in analysis.operators:
        return {}, None

    def change(inner: AffineConv) -> AffineConv | str:
        if not inner.pooled:
            return kernels.compose(outer, inner, border=analysis.border)
        if len(outer.stride) and not outer.is_pointwise:
            return "it has a window of more than the one pixel that is left of the image"
        return kernels.compose(kernels.pool(outer), inner)

    upstream = {one: op for one, op in analysis.operators[source].items() if one is not source}
    found, obstacle = _sorted((one, change(op)) for one, op in upstream.items())
    return {**found, source: outer}, obstacle


def _global_pool(node: fx.Node, analysis: Analysis) -> tuple[Operators, str | None]:
    source = node.args[0]
    rank = source.meta["val"].dim() - 2
    if node.target is aten.mean.dim:
        over = {axis % (rank + 2) for axis in node.args[1] or range(rank + 2)}
        whole = over == set(range(2, rank + 2)) and node.kwargs.get("dtype") is None
    else:
        whole = set(node.args[1]) == {1}
    if not whole or rank < 1:
        return {}, None
    return _pooled(source, analysis)


def _flatten(node: fx.Node, analysis: Analysis) -> tuple[Operators, str | None]:
    before, after = node.args[0].meta["val"], node.meta["val"]
    if after.dim() != 2 or before.dim() < 3 or before.shape[1] != after.shape[1] or set(before.shape[2:]) != {1}:
        return {}, None
    return _pooled(node.args[0], analysis)


def _pooled(source: fx.Node, analysis: Analysis) -> tuple[Operators, str | None]:
    """What a mean over all positions commutes with: the changes of each channel by itself.

    It commutes with a 1x1 convolution too; but where that is computed anyway, as before a gate, nothing is
    gained by a second way around it.
    """
    found = {}
    for one, op in analysis.operators.get(source, {}).items():
        if op.pooled:
            found[one] = op
        elif op.is_pointwise and op.groups == op.in_channels == op.out_channels:
            found[one] = kernels.pool(op)
    return found, None


# Channel by channel


def _batch_norm(node: fx.Node, analysis: Analysis) -> tuple[Operators, str | None]:
    named = arguments(node)
    if named["training"]:
        return {}, "it normalises with the statistics of each batch (track_running_stats=False), which is not linear"
    tensors = [named[name] for name in ("weight", "bias", "running_mean", "running_var")]
    if any(one is not None and not analysis.constants.is_whole(one) for one in tensors):
        return {}, "its weights or statistics depend on the input"
    values = [None if one is None else analysis.constants.value(one) for one in tensors]
    scale, shift = kernels.batch_norm_rows(*values, eps=named["eps"])
    return analysis.through(named["input"], lambda op: kernels.scale_rows(op, scale, shift))


def _sum(node: fx.Node, analysis: Analysis, sign: int = 1) -> tuple[Operators, str | None]:
    named = arguments(node)
    a, b = named["self"], named["other"]
    weight = sign * named["alpha"]
    if a in analysis.operators and b in analysis.operators:
        return _sum_of_branches(a, b, weight, analysis)
    turned = a not in analysis.operators
    branch, constant = (b, a) if turned else (a, b)
    shift = _per_channel(constant, branch, node, analysis)
    if isinstance(shift, str):
        return {}, f"it adds {shift}"
    own, scale = (weight, shift) if turned else (1, weight * shift)
    return analysis.through(branch, lambda op: kernels.scale_rows(op, torch.full_like(shift, own), scale))


def _sum_of_branches(a: fx.Node, b: fx.Node, weight: float, analysis: Analysis) -> tuple[Operators, str | None]:
    shared = [source for source in analysis.operators[a] if source in analysis.operators[b]]
    if not shared:
        starts = " and ".join(next(iter(analysis.operators[branch])).name for branch in (a, b))
        return {}, f"its branches start from different tensors, {starts}"

    def sum_from(source: fx.Node) -> AffineConv | str:
        ours, theirs = analysis.operators[a][source], analysis.operators[b][source]
        if weight != 1:
            theirs = kernels.scale_rows(theirs, torch.full((theirs.out_channels,), weight, dtype=torch.float64))
        return kernels.add(ours, theirs)

    return _sorted((source, sum_from(source)) for source in shared)


def _reversed_difference(node: fx.Node, analysis: Analysis) -> tuple[Operators, str | None]:
    named = arguments(node)
    scale, shift = -named["alpha"], named["other"]
    return analysis.through(node.args[0], lambda op: kernels.scale_rows(op, torch.full_like(op.bias, scale), shift))


def _product(node: fx.Node, analysis: Analysis, inverse: bool = False) -> tuple[Operators, str | None]:
    a, b = node.args[:2]
    if a in analysis.operators and b in analysis.operators:
        return {}, f"it {'divides' if inverse else 'multiplies'} two feature maps, which is not linear"
    if a not in analysis.operators and inverse:
        return {}, "it divides by a feature map, which is not linear"
    branch, constant = (a, b) if a in analysis.operators else (b, a)
    scale = _per_channel(constant, branch, node, analysis)
    if isinstance(scale, str):
        return {}, f"it {'divides' if inverse else 'multiplies'} by {scale}"
    return analysis.through(branch, lambda op: kernels.scale_rows(op, 1 / scale if inverse else scale))


def _negative(node: fx.Node, analysis: Analysis) -> tuple[Operators, str | None]:
    return analysis.through(node.args[0], lambda op: kernels.scale_rows(op, torch.full_like(op.bias, -1.0)))


def _same(node: fx.Node, analysis: Analysis) -> tuple[Operators, str | None]:
    before, after = node.args[0].meta["val"], node.meta["val"]
    if before.dtype != after.dtype or before.shape != after.shape or arguments(node).get("train"):
        return {}, None
    return analysis.through(node.args[0], lambda op: op)


def _per_channel(constant: object, branch: object, node: fx.Node, analysis: Analysis) -> Tensor | str:
    """A constant operand as float64 (channels,), or what it is instead."""
    if branch not in analysis.operators:
        return "something that is not a feature map"
    channels, *sizes = branch.meta["val"].shape[1:]
    if isinstance(constant, (int, float)):
        return torch.full((channels,), float(constant), dtype=torch.float64)
    if constant not in analysis.constants:
        return "something that is not a feature map"
    if node.meta["val"].shape != branch.meta["val"].shape:
        return "a constant that is larger than the feature map"
    value = analysis.constants.value(constant).double()
    value = value.reshape([1] * (len(sizes) + 2 - value.dim()) + list(value.shape))
    corner = value[(slice(0, 1), slice(None), *[slice(0, 1)] * len(sizes))]
    if not torch.equal(corner.expand_as(value), value):
        return "a constant that is not the same at every position"
    return corner.flatten().expand(channels)


# Channels and positions rearranged


def _concatenation(node: fx.Node, analysis: Analysis) -> tuple[Operators, str | None]:
    named = arguments(node)
    parts = named["tensors"]
    if named["dim"] % node.meta["val"].dim() != 1 or any(part not in analysis.operators for part in parts):
        return {}, None
    first, *others = (analysis.operators[part] for part in parts)
    shared = [source for source in first if all(source in other for other in others)]
    if not shared:
        return {}, "its parts start from different tensors"
    return _sorted((s, kernels.concatenate([analysis.operators[part][s] for part in parts])) for s in shared)


def _part(node: fx.Node, analysis: Analysis) -> tuple[Operators, str | None]:
    """One part of a split or chunk."""
    split = node.args[0]
    if split.target not in SPLITS:
        return {}, None
    axis = arguments(split)["dim"] % node.meta["val"].dim()
    if axis != 1:
        return {}, None
    sizes = [part.shape[1] for part in split.meta["val"]]
    first = sum(sizes[: node.args[1]])
    index = torch.arange(first, first + sizes[node.args[1]])
    return analysis.through(split.args[0], lambda op: kernels.take_rows(op, index))


def _selection(node: fx.Node, analysis: Analysis) -> tuple[Operators, str | None]:
    named = arguments(node)
    if named["dim"] % node.meta["val"].dim() != 1 or not analysis.constants.is_whole(named["index"]):
        return {}, None
    index = analysis.constants.value(named["index"])
    return analysis.through(named["self"], lambda op: kernels.take_rows(op, index))


def _slice(node: fx.Node, analysis: Analysis) -> tuple[Operators, str | None]:
    named = arguments(node)
    source, rank = named["self"], node.meta["val"].dim() - 2
    axis = named["dim"] % (rank + 2)
    start, end, step = named["start"] or 0, WHOLE if named["end"] is None else named["end"], named["step"]
    if axis == 0 or not all(isinstance(n, int) for n in (start, end, step)):
        return {}, None
    if axis == 1:
        index = torch.arange(source.meta["val"].shape[1])[start:end:step]
        return analysis.through(source, lambda op: kernels.take_rows(op, index))
    if start < 0 or 0 <= end < WHOLE:
        return {}, "it keeps a number of positions that does not follow from the size of the image"
    crop = [(0, 0)] * rank
    crop[axis - 2] = (-start, min(end, 0))
    stride = tuple(step if place == axis - 2 else 1 for place in range(rank))
    lo, hi = zip(*crop, strict=True)
    every = kernels.subsampled(source.meta["val"].shape[1], stride)

    def cropped(op: AffineConv) -> AffineConv | str:
        return "the image is a single pixel here" if op.pooled else kernels.compose(every, kernels.padded(op, lo, hi))

    return analysis.through(source, cropped)


def _constant_pad(node: fx.Node, analysis: Analysis) -> tuple[Operators, str | None]:
    named = arguments(node)
    if named.get("mode", "constant") != "constant":
        return {}, f"{named['mode']} padding copies the image, which no convolution with zeros does"
    source, pads = named["self"], list(named["pad"])
    value = node.meta["val"]
    rank = value.dim() - 2
    if not all(isinstance(n, int) for n in pads):
        return {}, "how much it pads depends on the size of the image"
    if source not in analysis.operators or any(pads[2 * rank :]):
        return {}, None
    pairs = [(pads[2 * place], pads[2 * place + 1]) for place in range(len(pads) // 2)][:rank]
    pairs = [*[(0, 0)] * (rank - len(pairs)), *pairs[::-1]]
    lo, hi = zip(*pairs, strict=True)
    fill = torch.full((value.shape[1],), float(named["value"] or 0.0), dtype=torch.float64)
    sides = {(axis, end): fill for axis in range(rank) for end in (False, True) if pairs[axis][end] > 0}
    return _framed(node, _Frame(source, lo, hi, sides), analysis)


def _overwrite(node: fx.Node, analysis: Analysis) -> tuple[Operators, str | None]:
    """slice_scatter: a part of a map is written over; followed where that is a whole side of its frame."""
    named = arguments(node)
    base, source = named["self"], named["src"]
    start, end = named["start"] or 0, WHOLE if named["end"] is None else named["end"]
    axis = named["dim"] % node.meta["val"].dim() - 2
    frame = analysis.frames.get(base)
    if frame is None or named["step"] != 1 or source not in analysis.constants:
        return {}, "it writes over a part of the image"
    size = base.meta["val"].shape[axis + 2]
    if start == 0 and end == frame.lo[axis]:
        side = (axis, False)
    elif _is_from_end(start, frame.hi[axis], size) and (not isinstance(end, int) or end >= WHOLE):
        side = (axis, True)
    else:
        return {}, "it writes over a part of the image that is not one side of its padding"
    value = analysis.constants.value(source)
    value = value.reshape([1] * (node.meta["val"].dim() - value.dim()) + list(value.shape))
    if value.numel() not in (1, value.shape[1]):
        return {}, "what it writes into the padding is not one value a channel"
    sides = {**frame.sides, side: value.flatten().expand(node.meta["val"].shape[1])}
    return _framed(node, _Frame(frame.inner, frame.lo, frame.hi, sides), analysis)


def _framed(node: fx.Node, frame: _Frame, analysis: Analysis) -> tuple[Operators, str | None]:
    analysis.frames[node] = frame
    values = list(frame.sides.values())
    if any(not torch.equal(value, values[0]) for value in values):
        return {}, "the sides of its padding differ"
    fill = values[0] if values else 0.0

    def change(op: AffineConv) -> AffineConv | str:
        if op.pooled:
            return "the image is a single pixel here"
        return kernels.padded(op, frame.lo, frame.hi, fill, border=analysis.border)

    return analysis.through(frame.inner, change)


def _is_from_end(start: object, width: int, size: object) -> bool:
    """Whether a slice that begins at `start` is the last `width` positions of `size`."""
    if isinstance(start, int):
        return start == -width or (isinstance(size, int) and start == size - width)
    return bool(start.meta["val"].node.expr == getattr(size, "node", size).expr - width)


def axes(value: object, rank: int) -> tuple[int, ...]:
    """A stride, padding or dilation as one number for each axis; ATen takes one number for all."""
    numbers = list(value) if isinstance(value, (list, tuple)) else [value]
    return tuple(numbers * rank if len(numbers) == 1 else numbers)


_Rule = Callable[[fx.Node, Analysis], tuple[Operators, str | None]]

# what does the same at every position
POINTWISE: dict[object, _Rule] = {
    BATCH_NORM: _batch_norm,
    **dict.fromkeys(ADDITIONS, _sum),
    **dict.fromkeys((aten.sub.Tensor, aten.sub.Scalar), partial(_sum, sign=-1)),
    aten.rsub.Scalar: _reversed_difference,
    **dict.fromkeys((aten.mul.Tensor, aten.mul.Scalar), _product),
    **dict.fromkeys((aten.div.Tensor, aten.div.Scalar), partial(_product, inverse=True)),
    aten.neg.default: _negative,
}
_POOLS = (aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)
_MEANS = (
    aten.mean.dim,
    aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default,
    aten.adaptive_avg_pool3d.default,
)
_FLATTENINGS = (aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.squeeze.dims)
_COPIES = (
    aten.clone.default,
    aten.alias.default,
    aten.detach.default,
    aten.contiguous.default,
    aten.dropout.default,
    aten.feature_dropout.default,
    aten._to_copy.default,
)

RULES: dict[object, _Rule] = {
    **POINTWISE,
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    aten.linear.default: _linear,
    **dict.fromkeys(_POOLS, _average_pool),
    **dict.fromkeys(_MEANS, _global_pool),
    **dict.fromkeys(_FLATTENINGS, _flatten),
    aten.cat.default: _concatenation,
    python.getitem: _part,
    aten.index_select.default: _selection,
    aten.slice.Tensor: _slice,
    **dict.fromkeys((aten.pad.default, aten.constant_pad_nd.default), _constant_pad),
    aten.slice_scatter.default: _overwrite,
    **dict.fromkeys(_COPIES, _same),
}
