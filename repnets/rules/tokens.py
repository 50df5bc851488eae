"""What is done to tokens, (..., C), channel by channel: linear layers, constants and sums, in any grouping."""

from repnets.graphs import aten
from repnets.operators import Rule
from repnets.rules import channelwise, rearranging, windows

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
    **dict.fromkeys(rearranging.COPIES, rearranging.same),
}
