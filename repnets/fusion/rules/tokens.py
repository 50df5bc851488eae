"""What is done to tokens, (..., C), channel by channel: linear layers, constants and sums, in any grouping."""

from repnets.fusion.graph import GROUPINGS, aten
from repnets.fusion.operators import Rule
from repnets.fusion.rules import channelwise, reshaping, windows

RULES: dict[object, Rule] = {
    **channelwise.CONSTANT_RULES,
    aten.linear.default: windows.linear,
    **dict.fromkeys(GROUPINGS, windows.regrouped),
    **dict.fromkeys(reshaping.COPIES, reshaping.same),
}
