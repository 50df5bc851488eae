"""Convolutions, transposed ones, linear layers and average pools."""

from collections.abc import Mapping
from functools import partial
from math import prod

from torch import fx

from repnets.fusion import affine_conv, composition
from repnets.fusion.affine_conv import AffineConv
from repnets.fusion.constants import Constants
from repnets.fusion.graph import CONVOLUTIONS, TRANSPOSED, arguments, aten, each_axis, zeros_around
from repnets.fusion.operators import Analysis, Found, Rule, gather
from repnets.fusion.transposed_conv import from_transposed_conv


def _convolution(node: fx.Node, analysis: Analysis) -> Found:
    named = arguments(node)
    source, weights = named["input"], _weights(named, analysis.constants)
    if isinstance(weights, str):
        return {}, weights
    shape = weights["shape"]
    rank = len(shape) - 2
    if source.meta["val"].dim() != rank + 2:
        return {}, "its input has no batch dimension"
    stride, dilation = each_axis(named["stride"], rank), each_axis(named["dilation"], rank)
    pad_lo, pad_hi = zeros_around(named["padding"], shape[2:], dilation)
    op = affine_conv.from_conv(
        **weights,
        stride=stride,
        pad_lo=pad_lo,
        pad_hi=pad_hi,
        dilation=dilation,
        groups=named["groups"],
    )
    return _after(op, source, analysis)


def _transposed_convolution(node: fx.Node, analysis: Analysis) -> Found:
    named = arguments(node)
    source, weights = named["input"], _weights(named, analysis.constants)
    if isinstance(weights, str):
        return {}, weights
    rank = len(weights["shape"]) - 2
    if source.meta["val"].dim() != rank + 2:
        return {}, "its input has no batch dimension"
    axes = {name: each_axis(named[name], rank) for name in ("stride", "padding", "output_padding", "dilation")}
    return _after(from_transposed_conv(**weights, **axes, groups=named["groups"]), source, analysis)


def linear(node: fx.Node, analysis: Analysis) -> Found:
    named = arguments(node)
    source, weights = named["input"], _weights(named, analysis.constants)
    if isinstance(weights, str):
        return {}, weights
    if source.meta["val"].dim() > 2 and analysis.axis != -1:
        return {}, None  # the channels of its input come last, and not second
    op = affine_conv.from_conv(**weights, **dict.fromkeys(("stride", "pad_lo", "pad_hi", "dilation"), ()))
    return _after(op, source, analysis)


def _weights(named: Mapping[str, object], constants: Constants) -> dict[str, object] | str:
    """What `from_conv` takes of a layer's weight and bias, or why one of them is no constant."""
    weight, bias = named["weight"], named["bias"]
    for name, one in (("weight", weight), ("bias", bias)):
        if one is not None and not constants.is_whole(one):
            return f"its {name} {constants.why_not(one)}"
    return {
        "weight": partial(constants.value, weight),
        "shape": tuple(weight.meta["val"].shape),
        "bias": None if bias is None else partial(constants.value, bias),
    }


def _average_pool(node: fx.Node, analysis: Analysis) -> Found:
    named = arguments(node)
    source = named["self"]
    rank = source.meta["val"].dim() - 2
    size, padding = each_axis(named["kernel_size"], rank), each_axis(named["padding"], rank)
    stride = each_axis(named["stride"] or size, rank)
    if named["ceil_mode"]:
        return {}, "ceil_mode averages its last window over fewer positions, at some sizes"
    if any(padding) and not named["count_include_pad"]:
        return {}, "count_include_pad=False averages over fewer positions at the border"
    divisor = named.get("divisor_override") or prod(size)
    op = affine_conv.average_pool(source.meta["val"].shape[1], size, stride, padding, divisor)
    return _after(op, source, analysis)


def _after(outer: AffineConv, source: fx.Node, analysis: Analysis) -> Found:
    """`outer` on the feature map `source`, and on all that it is made of."""
    if source not in analysis.operators:
        return {}, None

    def change(inner: AffineConv) -> AffineConv | str:
        if not inner.pooled:
            return composition.compose(outer, inner, border=analysis.border)
        if len(outer.stride) and not outer.is_pointwise:
            return "it has a window of more than the one pixel that is left of the image"
        return composition.compose(affine_conv.pool(outer), inner)

    upstream = analysis.operators[source].items()
    found, obstacle = gather((one, change(op)) for one, op in upstream if one is not source)
    return {**found, source: outer}, obstacle


def _global_pool(node: fx.Node, analysis: Analysis) -> Found:
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


def _flatten(node: fx.Node, analysis: Analysis) -> Found:
    before, after = node.args[0].meta["val"], node.meta["val"]
    if after.dim() == 2 and before.shape[-1] == after.shape[1]:
        return regrouped(node, analysis.tokens)
    if after.dim() != 2 or before.dim() < 3 or before.shape[1] != after.shape[1] or set(before.shape[2:]) != {1}:
        return {}, None
    return _pooled(node.args[0], analysis)


def regrouped(node: fx.Node, tokens: Analysis) -> Found:
    """Tokens put in other groups: as many channels, last as before."""
    before, after = node.args[0].meta["val"], node.meta["val"]
    if before.shape[-1] != after.shape[-1]:
        return {}, None
    found = tokens.operators.get(node.args[0], {})
    return {source: op for source, op in found.items() if not op.stride and not op.pooled}, None


def _pooled(source: fx.Node, analysis: Analysis) -> Found:
    """What a mean over all positions commutes with: what treats each position by itself."""
    found = {}
    for one, op in analysis.operators.get(source, {}).items():
        if op.pooled:
            found[one] = op
        elif op.is_pointwise:
            found[one] = affine_conv.pool(op)
    return found, None


_POOLS = (aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)
_ADAPTIVE = (aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default)
_FLATTENINGS = (aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.squeeze.dims)

RULES: dict[object, Rule] = {
    **dict.fromkeys(CONVOLUTIONS - TRANSPOSED, _convolution),
    **dict.fromkeys(TRANSPOSED, _transposed_convolution),
    aten.linear.default: linear,
    **dict.fromkeys(_POOLS, _average_pool),
    **dict.fromkeys((aten.mean.dim, *_ADAPTIVE), _global_pool),
    **dict.fromkeys(_FLATTENINGS, _flatten),
}
