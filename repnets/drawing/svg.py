"""Pictures of a network before and after fusing, side by side: all of it folded to blocks, or one block.

Laid out and drawn by Graphviz, in the form of pygraphviz, whose wheels bring it along.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from html import escape
from typing import TYPE_CHECKING

from torch import nn

from repnets.drawing.outline import Block, Step, blocks, change_text, origins, read, size_text
from repnets.errors import RepnetsError
from repnets.fusion.arguments import Example, tensors_of
from repnets.fusion.engine import FuseResult, fuse
from repnets.fusion.graph import node_shapes
from repnets.fusion.report import Totals

if TYPE_CHECKING:
    from pygraphviz import AGraph

_FONT = "Helvetica,Arial,sans-serif"
_INK, _GREY, _LINE, _PAPER = "#1f2933", "#66727f", "#9aa5b1", "#ffffff"
_FOLDED = ("#f1f6fd", "#8fb0d9")  # fill and outline of what one convolution takes the place of
_PLAIN = ("#f4f5f7", "#b3bcc6")
_COLOURS = {  # by kind of step
    "convolution": ("#d9e7f9", "#3f6fb0"),
    "linear": ("#d9e7f9", "#3f6fb0"),
    "norm": ("#e1f0e2", "#669a6a"),
    "activation": ("#f9e4df", "#c0705f"),
}
_LINK = {"style": "dashed", "color": _FOLDED[1], "arrowhead": "none", "constraint": "false"}  # to what took its place
_KINDS_NAMED, _FOLDS_NAMED = 6, 3  # kinds of operations, and folded convolutions, that a box lists
_ORDER = ("convolution", "linear", "norm", "sum", "activation")


def draw(
    model: nn.Module,
    example_input: Example,
    *,
    block: str | None = None,
    title: str = "",
    result: FuseResult | None = None,
) -> str:
    """A network before and after fusing, as an SVG image with a background of its own.

    Args:
        model: In eval mode, as for `fuse`.
        example_input: (N, C, *spatial), or a tuple of inputs; sizes in the picture are those of inputs like it.
        block: Qualified name of the module to draw operation by operation, "" for the network itself.
            Default: the whole network, a box a block.
        title: What stands above the picture. Default: nothing, or the name of the block.
        result: What `fuse` made of this model. Default: the model is fused here.

    Returns:
        The SVG document. Each box carries its name as a title, which browsers show at the pointer.

    Raises:
        RepnetsError: pygraphviz is not installed; the network has no such block; as for `fuse`.
    """
    require_graphviz()  # before the work is done
    shown = scene(example_input, result or fuse(model, example_input))
    return draw_network(shown, title) if block is None else draw_block(shown, block, title or block)


@dataclass(frozen=True)
class Scene:
    """A network before and after fusing, ready to be drawn.

    Attributes:
        original, fused: The steps of both networks.
        origins: For each step of the fused network, the original steps that it stands for.
        before, after: Sizes of both.
    """

    original: Sequence[Step]
    fused: Sequence[Step]
    origins: Mapping[str, Sequence[str]]
    before: Totals
    after: Totals

    @property
    def folded(self) -> set[str]:
        """The original steps in whose place stands another."""
        return {name for step in self.fused if step.module for name in self.origins[step.name]}


def scene(example_input: Example, result: FuseResult) -> Scene:
    """What `draw` draws; worth keeping where several pictures are made."""
    first = tensors_of(example_input)[0]
    original = read(result.original, node_shapes(result.original.graph, (1, *first.shape[1:])))
    shapes = {step.name: step.shape for step in original}
    fused = read(result.module)
    report = result.report
    stand_for = origins(fused, original, report.regions)
    fused = [replace(step, shape=shapes[stand_for[step.name][-1]]) for step in fused]
    return Scene(original, fused, stand_for, report.before, report.after)


def busiest_block(shown: Scene) -> str:
    """Name of the first block in which fusing folds most, which is a good one to draw; "" where there is none."""
    named = [part for part in blocks(shown.original) if part.type_name]
    busiest = max(named, key=lambda part: len(shown.folded & {step.name for step in part.steps}), default=None)
    return busiest.name if busiest else ""


@dataclass(frozen=True)
class _Box:
    """A box of the picture: its name, its text and attributes as Graphviz takes them, and the steps in it."""

    name: str
    text: str
    look: Mapping[str, str]
    steps: Sequence[Step]


# The whole network


def draw_network(shown: Scene, title: str = "") -> str:
    """All of it, a box a block, as `draw` does."""
    require_graphviz()
    graph = _canvas(title, ranksep="0.2", nodesep="0.8")
    shapes = {step.name: step.shape for step in shown.original}
    parts = blocks(shown.original)
    home = {step.name: part for part in parts for step in part.steps}
    groups: dict[Block, list[Step]] = {}
    for step in shown.fused:
        if step.kind not in ("input", "output"):
            groups.setdefault(home[shown.origins[step.name][0]], []).append(step)
    left = [_Box(part.name, _block_text(part, shapes), _block_look(part.steps, shown), part.steps) for part in parts]
    right = [_Box(part.name, _fused_text(part, steps), _fused_look(steps), steps) for part, steps in groups.items()]
    place = _add_column(graph, "before", _totals_text("In training", shown.before), left, shown.original)
    spot = _add_column(graph, "after", _totals_text("Fused", shown.after), right, shown.fused)
    level = {spot[name]: place[names[0]] for name, names in reversed(shown.origins.items())}
    for one, other in level.items():
        graph.add_subgraph([other, one], rank="same")
    folded = [step.name for step in shown.fused if step.module]
    for one, other in dict.fromkeys((place[origin], spot[name]) for name in folded for origin in shown.origins[name]):
        graph.add_edge(one, other, **_LINK)
    _even_out(graph)
    return _svg(graph)


def _totals_text(name: str, totals: Totals) -> str:
    counts = ", ".join(
        _many(count, word)
        for count, word in (
            (totals.convolutions, "convolution"),
            (totals.batch_norms, "batch norm"),
            (totals.additions, "addition"),
        )
    )
    size = f"{totals.parameters / 1e6:.2f} M parameters, {totals.macs / 1e6:,.0f} MMAC"
    return _text([_sized(_bold(name), 15), _grey(counts), _grey(size)])


def _block_text(part: Block, shapes: Mapping[str, Sequence[int]]) -> str:
    if not part.type_name:
        return _step_text(part.steps[0])
    inside = {step.name for step in part.steps}
    first = next(source for step in part.steps for source in step.inputs if source not in inside)
    change = change_text(shapes[first], part.steps[-1].shape)
    name, _, again = part.name.partition("@")
    return _text(
        [
            f"{_bold(name)}  {escape(part.type_name)}{' again' * bool(again)}",
            _grey(_joined(change, _summary(part.steps))),
        ]
    )


def _block_look(steps: Sequence[Step], shown: Scene) -> Mapping[str, str]:
    return _filled(*(_FOLDED if shown.folded & {step.name for step in steps} else _PLAIN))


def _fused_text(part: Block, steps: Sequence[Step]) -> str:
    folded = [step for step in steps if step.module]
    if not part.type_name:
        return _step_text(steps[0])
    if not folded or len(folded) > _FOLDS_NAMED:
        return _text([_bold(part.name.partition("@")[0]), _grey(_summary(steps))])
    others = _summary(step for step in steps if not step.module)
    return _text([*(f"{_bold(step.label)}  {escape(step.detail)}" for step in folded), _grey(others)])


def _fused_look(steps: Sequence[Step]) -> Mapping[str, str]:
    return _filled(*(_COLOURS["convolution"] if any(step.module for step in steps) else _PLAIN))


def _summary(steps: Iterable[Step]) -> str:
    steps = list(steps)
    if any(step.kind == "convolution" for step in steps):  # of branches, which have no order of their own
        steps.sort(key=lambda step: _ORDER.index(step.kind) if step.kind in _ORDER else len(_ORDER))
    counts = Counter("add" if step.label == "+" else step.label for step in steps)
    parts = [f"{count} {label}" if count > 1 else label for label, count in counts.items()]
    return _joined(*parts[:_KINDS_NAMED], "…" if len(parts) > _KINDS_NAMED else "")


def _joined(*parts: str) -> str:
    return " · ".join(part for part in parts if part)


# One block


def draw_block(shown: Scene, block: str, title: str = "") -> str:
    """One block, operation by operation, as `draw` does."""
    require_graphviz()
    _require_block(shown, block)
    chosen = {step.name for step in shown.original if block in _paths(step)}
    for step in shown.fused:  # what is folded into one is shown whole
        if step.module and chosen & set(shown.origins[step.name]):
            chosen |= set(shown.origins[step.name])
    original = _excerpt(shown.original, chosen)
    fused = _excerpt(shown.fused, {step.name for step in shown.fused if chosen & set(shown.origins[step.name])})
    graph = _canvas(title, ranksep="0.3", nodesep="0.4", newrank="true", compound="true")
    left, right = ([_step_box(step) for step in steps] for steps in (original, fused))
    place = _add_column(graph, "before", _counts_text("In training", original), left, original)
    spot = _add_column(graph, "after", _counts_text("Fused", fused), right, fused)
    for step in fused:
        stood_for = [place[name] for name in shown.origins.get(step.name, [step.name]) if name in place]
        if step.module:
            cluster = f"cluster {step.name}"
            graph.add_subgraph(stood_for, name=cluster, **_filled(*_FOLDED), label="", margin="12")
        if stood_for:
            beside = stood_for[-2:][0]  # the last but the sum
            graph.add_subgraph([beside, spot[step.name]], rank="same")
        if step.module:
            graph.add_edge(beside, spot[step.name], ltail=cluster, **_LINK)
    return _svg(graph)


def _require_block(shown: Scene, block: str) -> None:
    known = sorted({path for step in shown.original for path in _paths(step)})
    if block not in known:
        near = get_close_matches(block, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise RepnetsError(
            f"The network computes nothing in a block {block!r}.{hint} Give the qualified name of a module, as "
            "in model.named_modules()."
        )


def _paths(step: Step) -> list[str]:
    return ["", *(path for path, _ in step.stack)]


def _excerpt(steps: Sequence[Step], chosen: set[str]) -> list[Step]:
    """The chosen steps, sums of sums as one, and before and after them the values that come in and go out."""
    inside = _flat_sums([step for step in steps if step.name in chosen])
    own = {step.name for step in inside}
    taken = {name for step in inside for name in step.inputs}
    sources = [replace(step, kind="input", inputs=()) for step in steps if step.name in taken - own]
    ends = [step for step in inside if step.name not in taken]
    values = [replace(one, name=f"{one.name} out", kind="output", inputs=(one.name,)) for one in ends]
    return [*sources, *inside, *values]


def _flat_sums(steps: Sequence[Step]) -> list[Step]:
    """The steps, with a + b + c as one sum of three."""
    uses = Counter(name for step in steps for name in step.inputs)
    inputs: dict[str, tuple[str, ...]] = {}
    for step in steps:
        if step.label == "+":
            terms = ((inputs.pop(name) if name in inputs and uses[name] == 1 else (name,)) for name in step.inputs)
            inputs[step.name] = tuple(name for term in terms for name in term)
    return [
        replace(step, inputs=inputs.get(step.name, step.inputs))
        for step in steps
        if step.label != "+" or step.name in inputs
    ]


def _step_box(step: Step) -> _Box:
    if step.kind != "sum":
        return _Box(step.name, _step_text(step), _filled(*_COLOURS.get(step.kind, _PLAIN)), [step])
    size = {"shape": "circle", "fixedsize": "true", "width": "0.26", "margin": "0"}
    return _Box(step.name, step.label, {**size, "fillcolor": _PAPER, "color": _GREY}, [step])


def _step_text(step: Step) -> str:
    return _text([_bold(step.label), _grey(step.detail)])


def _counts_text(name: str, steps: Sequence[Step]) -> str:
    convolutions = sum(step.kind == "convolution" for step in steps)
    norms = sum(step.kind == "norm" for step in steps)
    parameters = sum(step.parameters for step in steps)
    counts = f"{_many(convolutions, 'convolution')}, {_many(norms, 'norm')}"
    return _text([_sized(_bold(name), 15), _grey(counts), _grey(f"{parameters:,} parameters")])


def _many(count: int, word: str) -> str:
    return f"{count or 'no'} {word}{'s' * (count > 1)}"


# What both are drawn with


def require_graphviz() -> None:
    """Raise the RepnetsError that says what to install, if there is nothing to draw with."""
    try:
        import pygraphviz  # noqa: F401
    except ImportError as error:
        raise RepnetsError(
            "Pictures are laid out by Graphviz, and pygraphviz, which brings it along, is not installed. Install "
            "it: pip install 'repnets[pictures]'."
        ) from error


def _canvas(title: str, **attributes: str) -> "AGraph":
    from pygraphviz import AGraph

    graph = AGraph(directed=True, strict=False, bgcolor=_PAPER, pad="0.3", fontname=_FONT, fontcolor=_INK, **attributes)
    if title:
        graph.graph_attr.update(label=f"<{_bold(title)}>", labelloc="t", fontsize="18")
    graph.node_attr.update(
        shape="box",
        style="rounded,filled",
        penwidth="1.2",
        fontname=_FONT,
        fontsize="11",
        fontcolor=_INK,
        margin="0.2,0.06",
    )
    graph.edge_attr.update(color=_LINE, arrowsize="0.6")
    return graph


def _add_column(
    graph: "AGraph", side: str, caption: str, boxes: Sequence[_Box], steps: Sequence[Step]
) -> dict[str, str]:
    """Draw one of the two networks under its caption; returns the node that each step is part of."""
    ends = [step for step in steps if step.kind in ("input", "output")]
    values = {step.name: step.shape for step in steps}
    for step in ends:
        shape = step.shape or values[step.inputs[0]]
        boxes = [*boxes, _Box(step.name, _text([_grey(size_text(shape))]), {"shape": "plain", "style": ""}, [step])]
    place = {step.name: f"{side}: {box.name}" for box in boxes for step in box.steps}
    graph.add_node(side, label=caption, shape="plain", style="")
    for box in boxes:
        graph.add_node(f"{side}: {box.name}", label=box.text, group=side, **box.look)
    for step in ends:
        if step.kind == "input":
            graph.add_edge(side, place[step.name], style="invis")
    links = [(place[source], place[step.name]) for step in steps for source in step.inputs]
    for one, other in dict.fromkeys(link for link in links if link[0] != link[1]):
        graph.add_edge(one, other)
    return place


def _even_out(graph: "AGraph") -> None:
    """Make the boxes of a column as wide as its widest."""
    graph.layout(prog="dot")
    for side in ("before", "after"):
        boxes = [node for node in graph.nodes() if node.startswith(f"{side}: ") and node.attr["shape"] == "box"]
        widest = max((float(node.attr["width"]) for node in boxes), default=0)
        for node in boxes:
            node.attr["width"] = str(widest)


def _svg(graph: "AGraph") -> str:
    return graph.draw(format="svg", prog="dot").decode()


def _text(lines: Iterable[str]) -> str:
    rows = "".join(f"<TR><TD>{line}</TD></TR>" for line in lines if line)
    return f'<<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="1">{rows}</TABLE>>'


def _bold(text: str) -> str:
    return f"<B>{escape(text)}</B>" if text else ""


def _grey(text: str) -> str:
    return f'<FONT COLOR="{_GREY}" POINT-SIZE="9">{escape(text)}</FONT>' if text else ""


def _sized(html: str, points: int) -> str:
    return f'<FONT POINT-SIZE="{points}">{html}</FONT>'


def _filled(fill: str, outline: str) -> dict[str, str]:
    return {"style": "rounded,filled", "fillcolor": fill, "color": outline}
