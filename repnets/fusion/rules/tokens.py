"""What is done to tokens, (..., C), channel by channel: linear layers, constants and sums, in any grouping."""

from repnets.fusion.graph import aten
from repnets.fusion.operators import Rule
from repnets.fusion.rules import channelwise, reshaping, windows

_GROUPINGS = (
    aten.view.default,
    aten.view_as.default,
    aten.reshape.default,
    aten.reshape_as.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
)

RULES: dict[object, Rule] = {
    **channelwise.CONSTANT_RULES,
    aten.linear.default: windows.linear,
    **dict.fromkeys(_GROUPINGS, windows.regrouped),
    **dict.fromkeys(reshaping.COPIES, reshaping.same),
}
