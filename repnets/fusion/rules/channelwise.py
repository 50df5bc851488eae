"""What does the same at every position: batch norms, sums, differences, products and quotients."""

from functools import partial

import torch
from torch import Tensor, fx

from repnets.fusion import affine_conv
from repnets.fusion.affine_conv import AffineConv
from repnets.fusion.graph import ADDITIONS, BATCH_NORM, arguments, aten
from repnets.fusion.operators import Analysis, Found, Rule, gather


def _batch_norm(node: fx.Node, analysis: Analysis) -> Found:
    named = arguments(node)
    if named.get("training") or named.get("use_input_stats"):
        of = "batch" if node.target is BATCH_NORM else "image"
        return {}, f"it normalises with the statistics of each {of} (track_running_stats=False), which is not linear"
    tensors = [named[name] for name in ("weight", "bias", "running_mean", "running_var")]
    other = next((one for one in tensors if one is not None and not analysis.constants.is_whole(one)), None)
    if other is not None:
        return {}, f"one of its weights or statistics {analysis.constants.why_not(other)}"
    values = [None if one is None else analysis.constants.value(one) for one in tensors]
    scale, shift = affine_conv.batch_norm_rows(*values, eps=named["eps"])
    return analysis.through(named["input"], lambda op: affine_conv.scale_rows(op, scale, shift))


def _sum(node: fx.Node, analysis: Analysis, sign: int = 1) -> Found:
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
    return analysis.through(branch, lambda op: affine_conv.scale_rows(op, torch.full_like(shift, own), scale))


def _sum_of_branches(a: fx.Node, b: fx.Node, weight: float, analysis: Analysis) -> Found:
    shared = [source for source in analysis.operators[a] if source in analysis.operators[b]]
    if not shared:
        starts = " and ".join(next(iter(analysis.operators[branch])).name for branch in (a, b))
        return {}, f"its branches start from different tensors, {starts}"

    def sum_from(source: fx.Node) -> AffineConv | str:
        ours, theirs = analysis.operators[a][source], analysis.operators[b][source]
        if weight != 1:
            theirs = affine_conv.scale_rows(theirs, torch.full((theirs.out_channels,), weight, dtype=torch.float64))
        return affine_conv.add(ours, theirs)

    return gather((source, sum_from(source)) for source in shared)


def _reversed_difference(node: fx.Node, analysis: Analysis) -> Found:
    named = arguments(node)
    scale, shift = -named["alpha"], named["other"]
    return analysis.through(node.args[0], lambda op: affine_conv.scale_rows(op, torch.full_like(op.bias, scale), shift))


def _product(node: fx.Node, analysis: Analysis, inverse: bool = False) -> Found:
    a, b = node.args[:2]
    if a in analysis.operators and b in analysis.operators:
        return {}, f"it {'divides' if inverse else 'multiplies'} two feature maps, which is not linear"
    if a not in analysis.operators and inverse:
        return {}, "it divides by a feature map, which is not linear"
    branch, constant = (a, b) if a in analysis.operators else (b, a)
    scale = _per_channel(constant, branch, node, analysis)
    if isinstance(scale, str):
        return {}, f"it {'divides' if inverse else 'multiplies'} by {scale}"
    return analysis.through(branch, lambda op: affine_conv.scale_rows(op, 1 / scale if inverse else scale))


def _negative(node: fx.Node, analysis: Analysis) -> Found:
    return analysis.through(node.args[0], lambda op: affine_conv.scale_rows(op, torch.full_like(op.bias, -1.0)))


def _per_channel(constant: object, branch: object, node: fx.Node, analysis: Analysis) -> Tensor | str:
    """A constant operand as float64 (channels,), or what it is instead."""
    if branch not in analysis.operators:
        return "something that is not a feature map"
    shape = branch.meta["val"].shape
    channels = shape[analysis.axis]
    if isinstance(constant, (int, float)):
        return torch.full((channels,), float(constant), dtype=torch.float64)
    if constant not in analysis.constants:
        return "something that is not a feature map"
    if node.meta["val"].shape != shape:
        return "a constant that is larger than the feature map"
    line = channel_line(torch.as_tensor(analysis.constants.value(constant)), len(shape), analysis.axis)
    return "a constant that is not the same at every position" if line is None else line.expand(channels)


def channel_line(value: Tensor, rank: int, axis: int = 1) -> Tensor | None:
    """A constant of a feature map's rank, or one that broadcasts to it, as float64 (channels,) or (1,).

    None where it is not the same at every position.
    """
    value = value.double().reshape([1] * (rank - value.dim()) + list(value.shape)).movedim(axis, 0)
    line = value[(slice(None), *[slice(0, 1)] * (rank - 1))]
    return line.flatten() if torch.equal(line.expand_as(value), value) else None


CONSTANT_RULES: dict[object, Rule] = {
    **dict.fromkeys(ADDITIONS, _sum),
    **dict.fromkeys((aten.sub.Tensor, aten.sub.Scalar), partial(_sum, sign=-1)),
    aten.rsub.Scalar: _reversed_difference,
    **dict.fromkeys((aten.mul.Tensor, aten.mul.Scalar), _product),
    **dict.fromkeys((aten.div.Tensor, aten.div.Scalar), partial(_product, inverse=True)),
    aten.neg.default: _negative,
}
RULES: dict[object, Rule] = {BATCH_NORM: _batch_norm, aten.instance_norm.default: _batch_norm, **CONSTANT_RULES}
