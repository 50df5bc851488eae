"""What each feature map of a captured graph is, as an affine convolution of the feature maps before it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, fx

from repnets.fusion.affine_conv import AffineConv
from repnets.fusion.constants import Constants

Operators = dict[fx.Node, AffineConv]  # of one node, by source, sources in the order of the graph
Found = tuple[Operators, str | None]  # what a rule finds, and why it does not find more


@dataclass(frozen=True)
class Frame:
    """A map set in a frame of constants, which later calls may overwrite a side at a time.

    Attributes:
        inner: The map.
        lo: Positions before its first, for each axis.
        hi: Positions after its last.
        sides: (axis, whether at its end) to the constants there, float64 (channels,).
    """

    inner: fx.Node
    lo: tuple[int, ...]
    hi: tuple[int, ...]
    sides: Mapping[tuple[int, bool], Tensor]


@dataclass
class Analysis:
    """The operators of a graph's feature maps, filled in by `repnets.fusion.analysis.analyse`.

    Attributes:
        constants: The part of the graph that does not depend on the input.
        axis: Where the channels are: 1, or -1 for tokens, whose channels come last and whose operators have no
            spatial axes. Of a matrix (N, C) both are the same.
        border: Whether an operator may have a border term.
        operators: Of each feature map, its operators by source; itself is always one.
        obstacles: For a node that a rule knows, why it has no operator, or none from further upstream.
        frames: Of the nodes that pad with constants, or write some into a padding.
        tokens: The same graph read with its channels last.
    """

    constants: Constants
    axis: int = 1
    border: bool = False
    operators: dict[fx.Node, Operators] = field(default_factory=dict)
    obstacles: dict[fx.Node, str] = field(default_factory=dict)
    frames: dict[fx.Node, Frame] = field(default_factory=dict)
    tokens: "Analysis | None" = None

    def upstream(self, node: fx.Node) -> list[tuple[fx.Node, AffineConv]]:
        """All sources of a node but itself, each with an operator, channels second first."""
        readings = [self.operators.get(node, {})]
        if self.tokens is not None and self.tokens.operators.get(node) is not readings[0]:
            readings.append(self.tokens.operators.get(node, {}))
        return [pair for reading in readings for pair in reading.items() if pair[0] is not node]

    def through(self, before: fx.Node, change: Callable[[AffineConv], AffineConv | str]) -> Found:
        """The operators of `before` after one more change."""
        return gather((source, change(op)) for source, op in self.operators.get(before, {}).items())


Rule = Callable[[fx.Node, Analysis], Found]


def gather(made: Iterable[tuple[fx.Node, AffineConv | str]]) -> Found:
    """The operators among what was made for each source, and the first reason why another is none."""
    found: Operators = {}
    obstacle = None
    for source, one in made:
        if isinstance(one, str):
            obstacle = obstacle or one
        else:
            found[source] = one
    return found, obstacle
