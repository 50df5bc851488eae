"""One forward pass over a captured graph: which affine convolutions its feature maps are."""

from torch import Tensor, fx

from repnets import kernels
from repnets.constants import Constants
from repnets.operators import Analysis, Operators
from repnets.rules import RULES


def analyse(graph: fx.Graph, constants: Constants, border: bool = False) -> Analysis:
    """Find the operators of every feature map: a floating tensor (N, C, ...) whose C is a number.

    What no rule knows, a nonlinearity say, is a new beginning and has only itself as a source.

    Args:
        graph: A captured graph with its batch norms flattened and whole slices dropped.
        constants: Its constants.
        border: Whether an operator may have a border term. Default False.
    """
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
