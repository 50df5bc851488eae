"""The cheapest plan found: which nodes of a linear piece are computed, and each in which way.

It is approached from the graph as it is, by the best of two kinds of change at a time: another way to compute one
node, and doing without one node, for which all its readers find another way at once. No change is taken that leaves
more layers than the piece had.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import fx

from repnets.fusion.affine_conv import AffineConv

_LEAST_GAIN = 1e-6  # of a piece's cost; a smaller one is rounding
_EQUAL = 1e-9  # likewise, of two costs


@dataclass(frozen=True, eq=False)
class Way:
    """One way to compute a node.

    Attributes:
        operator: What it computes it by; None for the node's own call.
        reads: The feature maps that it reads.
        cost: Of it alone.
        layers: How many convolutions and linear layers it is.
    """

    operator: AffineConv | None
    reads: tuple[fx.Node, ...]
    cost: float
    layers: int


Ways = Mapping[fx.Node, Sequence[Way]]
_Change = dict[fx.Node, Way]


def cheapest(ways: Ways, outputs: Iterable[fx.Node]) -> dict[fx.Node, Way]:
    """The way to compute each node of a piece that is still computed.

    Args:
        ways: To compute each node, its own call first, nodes in the order of the graph.
        outputs: Nodes that must be computed.
    """
    search = _Search(ways, outputs)
    while search.improve():
        pass
    return {node: way for node, way in search.choice.items() if search.readers[node]}


class _Search:
    """A plan, what it costs, and what each change of it would.

    A change is tried in place and taken back. What a trial gave holds until a node changes that the trial touched, so
    that a step costs as much as what is near it, however large the piece is.
    """

    def __init__(self, ways: Ways, outputs: Iterable[fx.Node]) -> None:
        self.ways = ways
        self.outputs = set(outputs)
        self.choice = {node: options[0] for node, options in ways.items()}
        self.readers: Counter[fx.Node] = Counter()  # computed ones, and one of each output
        self.cost, self.layers = 0.0, 0
        self._touched: set[fx.Node] = set()
        self._may_read: dict[fx.Node, list[fx.Node]] = defaultdict(list)
        for node, options in ways.items():
            for read in dict.fromkeys(read for way in options for read in way.reads):
                self._may_read[read].append(node)
        for node in self.outputs:
            if self._changes_state(node, 1):
                self._count(self.choice[node], 1)
        self._most_layers = self.layers
        self._place = {node: place for place, node in enumerate(reversed(ways))}
        self._gains: dict[fx.Node, tuple[float, _Change]] = {}  # of the best change that begins at a node
        self._untried = dict.fromkeys(ways)
        self._depend: dict[fx.Node, set[fx.Node]] = defaultdict(set)  # by what a trial touched: where it began
        self._refused: set[fx.Node] = set()  # where a change began that gains and leaves too many layers

    def improve(self) -> bool:
        """Take the best change, if one gains."""
        for node in self._untried:
            if self.readers[node] and (found := self._best_change(node)):
                self._gains[node] = found
        self._untried = {}
        best = max((gain for gain, _ in self._gains.values()), default=0.0)
        if best <= _LEAST_GAIN * self.cost:
            return False
        # sums of the same costs in another order differ in their last digits: the first of equal ones is taken
        equal = [node for node, (gain, _) in self._gains.items() if gain >= best - _EQUAL * self.cost]
        _, change = self._gains[min(equal, key=self._place.__getitem__)]
        self._touched, layers = set(), self.layers
        self._take(change)
        stale = {one for node in self._touched for one in (node, *self._depend.pop(node, ()))}
        if self.layers != layers:
            stale |= self._refused if self.layers < layers else set(self.ways)
        for node in stale:
            self._gains.pop(node, None)
        self._refused -= stale
        self._untried = dict.fromkeys(sorted(stale, key=self._place.__getitem__))
        return True

    def _best_change(self, node: fx.Node) -> tuple[float, _Change] | None:
        """What the best change that begins at a node saves, and that change; None where none gains."""
        self._touched = {node}
        before, best = self.cost, None
        for change in self._changes(node):
            with self._trial(change):
                gain = before - self.cost
                if gain <= (best[0] if best else 0.0) + _EQUAL * before:
                    continue
                if self.layers <= self._most_layers:
                    best = gain, change
                else:
                    self._refused.add(node)
        for one in self._touched:
            self._depend[one].add(node)
        return best

    def _changes(self, node: fx.Node) -> Iterator[_Change]:
        yield from ({node: way} for way in self.ways[node] if way is not self.choice[node])
        if node not in self.outputs and (change := self._without(node)):
            yield change

    def _without(self, node: fx.Node) -> _Change | None:
        """Each reader's cheapest way that does not read a node, or None if one has none.

        The last reader is changed first: one before it may then be needed no more.
        """
        change: _Change = {}
        while True:
            with self._trial(change):
                readers = (one for one in reversed(self._may_read[node]) if self.readers[one])
                reader = next((one for one in readers if node in self.choice[one].reads), None)
                if reader is None:
                    return change
                others = [way for way in self.ways[reader] if node not in way.reads]
                if not others:
                    return None
                change = {**change, reader: min(others, key=self._cost_of)}

    def _cost_of(self, way: Way) -> float:
        """The cost of a way and of what it reads that is not computed yet."""
        self._touched.update(way.reads)
        return way.cost + sum(
            self.choice[one].cost for one in way.reads if one in self.choice and not self.readers[one]
        )

    @contextmanager
    def _trial(self, change: _Change) -> Iterator[None]:
        own = {node: self.choice[node] for node in reversed(change)}
        kept = self.cost, self.layers
        self._take(change)
        try:
            yield
        finally:
            self._take(own)
            self.cost, self.layers = kept

    def _take(self, change: _Change) -> None:
        for node, way in change.items():
            old, self.choice[node] = self.choice[node], way
            self._touched.add(node)
            if self.readers[node]:
                self._count(way, 1)
                self._count(old, -1)

    def _count(self, way: Way, by: int) -> None:
        """Count a way in or out, and all that is computed for it alone."""
        pending = [way]
        while pending:
            one = pending.pop()
            self.cost += by * one.cost
            self.layers += by * one.layers
            pending.extend(self.choice[read] for read in one.reads if self._changes_state(read, by))

    def _changes_state(self, node: fx.Node, by: int) -> bool:
        if node not in self.choice:
            return False
        self._touched.add(node)
        before = self.readers[node]
        self.readers[node] += by
        return not before or not self.readers[node]
