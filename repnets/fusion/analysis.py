"""One forward pass over a captured graph: which affine convolutions its feature maps are."""

from collections.abc import Mapping

from torch import Tensor, fx

from repnets.fusion import affine_conv
from repnets.fusion.affine_conv import AffineConv
from repnets.fusion.constants import Constants
from repnets.fusion.operators import Analysis, Operators, Rule
from repnets.fusion.rules import RULES, TOKEN_RULES


def analyse(graph: fx.Graph, constants: Constants, border: bool = False) -> Analysis:
    """Find the operators of every feature map: a floating tensor (N, C, ...), or (..., C), whose C is a number above 0.

    What no rule knows, a nonlinearity say, is a new beginning and has only itself as a source.

    Args:
        graph: A captured graph with its batch norms flattened and whole slices dropped.
        constants: Its constants.
        border: Whether an operator may have a border term. Default False.
    """
    tokens = Analysis(constants, axis=-1)
    analysis = Analysis(constants, border=border, tokens=tokens)
    for node in graph.nodes:
        value = node.meta.get("val")
        if node in constants or not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() < 2:
            continue
        if isinstance(value.shape[1], int) and value.shape[1]:
            _apply(RULES, node, analysis, affine_conv.identity(value.shape[1], value.dim() - 2))
            if value.dim() == 2:
                tokens.operators[node] = analysis.operators[node]
        if isinstance(value.shape[-1], int) and value.shape[-1] and value.dim() > 2:
            _apply(TOKEN_RULES, node, tokens, affine_conv.identity(value.shape[-1], 0))
    return analysis


def _kind(node: fx.Node) -> str:
    return str(node.meta["val"].dtype).removeprefix("torch.")


def _apply(rules: Mapping[object, Rule], node: fx.Node, analysis: Analysis, itself: AffineConv) -> None:
    found: Operators = {}
    if node.target in rules:
        found, obstacle = rules[node.target](node, analysis)
        other = next((one for one in found if one.meta["val"].dtype != node.meta["val"].dtype), None)
        if other is not None:  # a layer's weights have the dtype of what it reads
            found, obstacle = (
                {},
                f"it gives {_kind(node)} for the {_kind(other)} that it reads, and a layer has one dtype",
            )
        if obstacle is not None:
            analysis.obstacles[node] = obstacle
    analysis.operators[node] = {**found, node: itself}
