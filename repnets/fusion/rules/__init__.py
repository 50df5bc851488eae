"""How the operators of a call follow from those of its inputs: a rule a kind of call, by its ATen name."""

from collections.abc import Mapping

from repnets.fusion.operators import Rule
from repnets.fusion.rules import channelwise, reshaping, tokens, windows

CHANNELWISE: Mapping[object, Rule] = channelwise.RULES
RULES: Mapping[object, Rule] = {**channelwise.RULES, **windows.RULES, **reshaping.RULES}
TOKEN_RULES: Mapping[object, Rule] = tokens.RULES
