"""Channels and positions taken apart, put together, padded, cropped and copied."""

import operator
from collections.abc import Callable

import torch
from torch import fx

from repnets.fusion import affine_conv, composition
from repnets.fusion.affine_conv import AffineConv
from repnets.fusion.graph import SPLITS, WHOLE, arguments, aten
from repnets.fusion.operators import Analysis, Found, Frame, Rule, gather
from repnets.fusion.rules.channelwise import channel_line


def _concatenation(node: fx.Node, analysis: Analysis) -> Found:
    named = arguments(node)
    parts = named["tensors"]
    if len(parts) == 1:
        return analysis.through(parts[0], lambda op: op)
    if named["dim"] % node.meta["val"].dim() != 1 or any(part not in analysis.operators for part in parts):
        return {}, None
    first, *others = (analysis.operators[part] for part in parts)
    shared = [source for source in first if all(source in other for other in others)]
    if not shared:
        return {}, "its parts start from different tensors"
    return gather((s, affine_conv.concatenate([analysis.operators[part][s] for part in parts])) for s in shared)


def _part(node: fx.Node, analysis: Analysis) -> Found:
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
    return analysis.through(split.args[0], lambda op: affine_conv.take_rows(op, index))


def _selection(node: fx.Node, analysis: Analysis) -> Found:
    named = arguments(node)
    if named["dim"] % node.meta["val"].dim() != 1 or not analysis.constants.is_whole(named["index"]):
        return {}, None
    index = analysis.constants.value(named["index"])
    return analysis.through(named["self"], lambda op: affine_conv.take_rows(op, index))


def _slice(node: fx.Node, analysis: Analysis) -> Found:
    named = arguments(node)
    source, rank = named["self"], node.meta["val"].dim() - 2
    axis = named["dim"] % (rank + 2)
    start, end, step = named["start"] or 0, WHOLE if named["end"] is None else named["end"], named["step"]
    if axis == 0 or not all(isinstance(n, int) for n in (start, end, step)):
        return {}, None
    if axis == 1:
        index = torch.arange(source.meta["val"].shape[1])[start:end:step]
        return analysis.through(source, lambda op: affine_conv.take_rows(op, index))
    if start < 0 or 0 <= end < WHOLE:
        return {}, "it keeps a number of positions that does not follow from the size of the image"
    crop = [(0, 0)] * rank
    crop[axis - 2] = (-start, min(end, 0))
    stride = tuple(step if place == axis - 2 else 1 for place in range(rank))
    lo, hi = zip(*crop, strict=True)
    every = affine_conv.subsampled(source.meta["val"].shape[1], stride)

    def cropped(op: AffineConv) -> AffineConv | str:
        return (
            "the image is a single pixel here"
            if op.pooled
            else composition.compose(every, composition.padded(op, lo, hi))
        )

    return _through_crop(source, cropped, analysis)


def _constant_pad(node: fx.Node, analysis: Analysis) -> Found:
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
    return _framed(node, Frame(source, lo, hi, sides), analysis)


def _overwrite(node: fx.Node, analysis: Analysis) -> Found:
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
    elif _is_from_end(start, frame.hi[axis], size) and _is_end(end, size):
        side = (axis, True)
    else:
        return {}, "it writes over a part of the image that is not one side of its padding"
    value = channel_line(analysis.constants.value(source), node.meta["val"].dim())
    if value is None:
        return {}, "what it writes into the padding is not one value a channel"
    sides = {**frame.sides, side: value.expand(node.meta["val"].shape[1])}
    return _framed(node, Frame(frame.inner, frame.lo, frame.hi, sides), analysis)


def _framed(node: fx.Node, frame: Frame, analysis: Analysis) -> Found:
    analysis.frames[node] = frame
    values = list(frame.sides.values())
    if any(not torch.equal(value, values[0]) for value in values):
        return {}, "the sides of its padding differ"
    fill = values[0] if values else 0.0

    def change(op: AffineConv) -> AffineConv | str:
        if op.pooled:
            return "the image is a single pixel here"
        return composition.padded(op, frame.lo, frame.hi, fill, border=analysis.border)

    return _through_crop(frame.inner, change, analysis)


def _through_crop(before: fx.Node, change: Callable[[AffineConv], AffineConv | str], analysis: Analysis) -> Found:
    """The operators of `before` after a change that may cut off the border at which layers before it do not fold."""
    found, obstacle = analysis.through(before, change)
    pending = list(found)
    while pending:
        between = pending.pop()
        outer, further = found[between], analysis.operators[between].items()
        for source, inner in [(one, op) for one, op in further if one not in found and not op.pooled]:
            both = composition.compose(outer, inner, border=analysis.border) if outer.border is None else ""
            if not isinstance(both, str):
                found[source] = both
                pending.append(source)
    return {source: found[source] for source in analysis.operators if source in found}, obstacle


def _is_from_end(start: object, width: int, size: object) -> bool:
    """Whether a slice that begins at `start` is the last `width` positions of `size`."""
    if isinstance(start, int):
        return start == -width or (isinstance(size, int) and start == size - width)
    return not isinstance(size, int) and bool(start.meta["val"].node.expr == size.node.expr - width)


def _is_end(end: object, size: object) -> bool:
    """Whether a slice that ends at `end` goes to the last of `size` positions."""
    if isinstance(end, int):
        return end >= (size if isinstance(size, int) else WHOLE)
    return not isinstance(size, int) and bool(end.meta["val"].node.expr == size.node.expr)


def same(node: fx.Node, analysis: Analysis) -> Found:
    before, after = node.args[0].meta["val"], node.meta["val"]
    if node.args[0] in analysis.operators and before.dtype != after.dtype:
        kinds = (str(one.dtype).removeprefix("torch.") for one in (before, after))
        return {}, "it casts {} to {}, which rounds or keeps what was rounded".format(*kinds)
    if before.dtype != after.dtype or before.shape != after.shape or arguments(node).get("train"):
        return {}, None
    return analysis.through(node.args[0], lambda op: op)


COPIES = (
    aten.clone.default,
    aten.alias.default,
    aten.detach.default,
    aten.contiguous.default,
    aten.dropout.default,
    aten.feature_dropout.default,
    aten._to_copy.default,
    aten.type_as.default,
    *(getattr(aten.to, name) for name in aten.to.overloads()),
)

RULES: dict[object, Rule] = {
    **dict.fromkeys((aten.cat.default, aten.concat.default, aten.concatenate.default), _concatenation),
    operator.getitem: _part,
    aten.index_select.default: _selection,
    aten.slice.Tensor: _slice,
    **dict.fromkeys((aten.pad.default, aten.constant_pad_nd.default), _constant_pad),
    aten.slice_scatter.default: _overwrite,
    **dict.fromkeys(COPIES, same),
}
