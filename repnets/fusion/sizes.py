"""The input sizes that a captured program takes: found by trial, and then asserted by the program itself.

torch.export takes some sizes for impossible that are not, such as those at which the last feature map is one pixel, and
writes guards against them into the program. Others of its guards are needed: a padding to whole windows, say, is
captured for the one remainder that the example had. What guards forbid among small sizes, or between sizes, is tried;
what they forbid among large ones is believed.
"""

import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.utils._sympy.value_ranges import ValueRanges

from repnets.fusion.trial import Trial

_SIZE = re.compile(r"(L\['\w+'\](?:\[\d+\])*)\.size\(\)\[(\d+)\]")
_TRIED = 4  # sizes of each kind
_MOST = 2**31  # elements of an input: what torch counts with 32 bits

Shape = tuple[int, ...]


@dataclass(frozen=True)
class FreeSize:
    """Sizes of one axis that a program takes: `min`, `min + step`, and so on, without end."""

    min: int
    step: int = 1

    def __contains__(self, size: int) -> bool:
        return size >= self.min and (size - self.min) % self.step == 0

    @property
    def sizes(self) -> str:
        """The sizes themselves: ``any``, ``any from 7 on``, ``32, 64, 96 and so on``."""
        if self.step == 1:
            return f"any from {self.min} on" if self.min > 1 else "any"
        return f"{self.min}, {self.min + self.step}, {self.min + 2 * self.step} and so on"

    def __str__(self) -> str:
        """``free``, ``free from 7 on``, ``fixed modulo 32: 32, 64, 96 and so on``."""
        if self.step == 1:
            return f"free from {self.min} on" if self.min > 1 else "free"
        return f"fixed modulo {self.step}: {self.sizes}"


def graph_module(program: ExportedProgram) -> GraphModule:
    """The network of a program as a graph to be rewritten: without the call that asserts its input sizes."""
    return program.module(check_guards=False)


def free_sizes(program: ExportedProgram) -> dict[int, FreeSize]:
    """By axis of the input: the sizes that the program's guards allow, in any combination.

    Axes that are not named are fixed. Axes whose sizes follow no rule of the form of `FreeSize`, or one that depends on
    the other axes, are left out too. Of a program of several inputs only the batch can be free, which they share.
    """
    if len(program.graph_signature.user_inputs) != 1:
        return _free_batch(program)
    captured = tuple(program.example_inputs[0][0].shape)
    allows = _guard(program)
    numbers = sorted({int(number) for guard in program._guards_code for number in re.findall(r"\b\d+\b", guard)})
    rules = {axis: rule for axis in _symbols(program) if (rule := _rule(allows, captured, axis, numbers))}
    if all(map(allows, _far(captured, rules))):
        return rules
    return {axis: rule for axis, rule in rules.items() if axis == 0}


def axis_names(rank: int) -> tuple[str, ...]:
    """What the axes of an input are called: ``batch``, ``channels``, ``height``, ``width`` of images (N, C, H, W)."""
    spatial = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}
    return ("batch", "channels", *spatial.get(rank - 2, map("axis {}".format, range(2, rank))))[:rank]


def by_name(sizes: Mapping[int, FreeSize], rank: int) -> dict[str, FreeSize]:
    """Free sizes by the name of their axis, as `axis_names` gives it."""
    names = axis_names(rank)
    return {names[axis]: size for axis, size in sizes.items()}


def in_words(shape: Sequence[int | None], free: Mapping[str, FreeSize]) -> str:
    """Which sizes an input may have: ``batch free; channels fixed at 3; width fixed modulo 2: 2, 4, 6 and so on``."""
    names = axis_names(len(shape))
    return "; ".join(f"{name} {free.get(name, f'fixed at {size}')}" for name, size in zip(names, shape, strict=True))


def settle_sizes(program: ExportedProgram, trial: Trial) -> bool:
    """Let a program allow the sizes that it computes right, and no others, in place.

    A size that a guard forbids is tried: it is allowed where the model makes the same calls as at the example,
    and the program gives there what the model gives.

    Args:
        program: Of one input with free axes, each of them in `free_sizes`. Its guards and ranges are replaced, and its
            example is that of the trial, twice if its batch is free.
        trial: Of the model that was captured.

    Returns:
        Whether every free axis has a rule that holds, also together with the others, and that the trial's example
        keeps to. If not, the program is of no use.
    """
    guarded, allows = free_sizes(program), _guard(program)
    _set_least(program, dict.fromkeys(guarded, 1))  # the trial's graph is to refuse no size
    graph = graph_module(program)
    own = trial.example.shape

    @cache
    def holds(shape: Shape) -> bool:
        return trial.agrees(graph, shape, same_calls=not allows(shape))

    assured = _with_an_output(holds, guarded, own)
    small = _replaced(own, {axis: size.min for axis, size in assured.items()})
    widest = {axis: _widest(holds, axis, size, small, list(assured)) for axis, size in assured.items()}
    # a norm by the statistics of the image itself takes no image of a single pixel, however many axes are 1 before it
    larger = {axis: FreeSize(size.min + size.step, size.step) if axis else size for axis, size in assured.items()}
    candidates = (widest, assured, larger, *_coarser(guarded, own))
    claimed = next((sizes for sizes in candidates if _together(holds, small, sizes)), None)
    if claimed is None:
        return False
    if any(own[axis] not in size for axis, size in claimed.items()) or not holds(tuple(own)):
        return False
    _assert_sizes(program, claimed, _source(program, trial.model))
    images = torch.cat([trial.example] * 2) if 0 in claimed and own[0] == 1 else trial.example
    program.example_inputs = ((images,), {})
    return True


def narrow_sizes(program: ExportedProgram, free: Mapping[int, FreeSize]) -> None:
    """Let a program take no more sizes than another, which it was made of without its guards, in place.

    Args:
        program: As `capture` gives it.
        free: By axis: the sizes that the other takes. Axes that are not named are fixed at those of the program's
            example. A program of several inputs is left as it is: both take any batch, and nothing else.
    """
    if len(program.graph_signature.user_inputs) != 1:
        return
    name = program.graph_signature.user_inputs[0]
    source = _source_in_guards(program) or f"L['{name}']"
    shape = program.example_inputs[0][0].shape
    kept = {}
    for axis, own in free_sizes(program).items():
        if axis in free:
            step = math.lcm(own.step, free[axis].step)
            least = max(own.min, free[axis].min)
            both = [size for size in range(least, least + step) if size in own and size in free[axis]]
            if both:
                kept[axis] = FreeSize(both[0], step)
    _assert_sizes(program, kept, source)
    program._guards_code += [f"{source}.size()[{axis}] == {shape[axis]}" for axis in _symbols(program).keys() - kept]


def symbolic_axes(program: ExportedProgram) -> set[int]:
    """The axes of the one input of a program whose size is not a number, whether or not it has a rule."""
    return {axis for axis, size in enumerate(_input(program).shape) if isinstance(size, torch.SymInt)}


def has_upper_limit(program: ExportedProgram) -> bool:
    """Whether a size ends somewhere, mostly because a feature map was one pixel, which the exporter takes for fixed."""
    return any(program.range_constraints[symbol].upper < _MOST for symbol in _symbols(program).values())


def _with_an_output(
    holds: Callable[[Shape], bool], assured: Mapping[int, FreeSize], own: Sequence[int]
) -> dict[int, FreeSize]:
    """The sizes from the first on that holds, the image's axes alike: guards allow those at which nothing is left."""

    def after(steps: int) -> dict[int, FreeSize]:
        return {axis: FreeSize(size.min + bool(axis) * steps * size.step, size.step) for axis, size in assured.items()}

    def taken(steps: int) -> bool:
        return holds(_replaced(own, {axis: size.min for axis, size in after(steps).items()}))

    steps = range(max((own[axis] - size.min) // size.step for axis, size in assured.items()) + 1)
    return after(_first(taken, steps)) if steps and taken(steps[-1]) else dict(assured)


def _widest(
    holds: Callable[[Shape], bool], axis: int, assured: FreeSize, small: Sequence[int], axes: Sequence[int]
) -> FreeSize:
    """The most sizes of an axis that hold on trial."""
    spatial = [one for one in axes if one] if axis else [0]

    def taken(size: int) -> bool:
        return holds(_replaced(small, dict.fromkeys(spatial, size))) and holds(_replaced(small, {axis: size}))

    step = assured.step
    if step > 1 and all(taken(assured.min + more) for more in range(1, max(_TRIED, step))):
        step = 1
    below = range((assured.min - 1) % step + 1, assured.min, step)
    if not below or not taken(below[-1]):
        return FreeSize(assured.min, step)
    first = _first(taken, below)
    between = below[first :: max(1, (len(below) - first) // _TRIED)]
    return FreeSize(below[first] if all(map(taken, between)) else assured.min, step)


def _first(taken: Callable[[int], bool], sizes: Sequence[int]) -> int:
    """The place of the first of some sizes that is taken; the last one is, and mostly all or few of them."""
    low, high = 0, len(sizes) - 1
    while low < high:
        middle = (low + high) // 2 if low else 0
        low, high = (low, middle) if taken(sizes[middle]) else (middle + 1, high)
    return high


def _coarser(assured: Mapping[int, FreeSize], own: Sequence[int]) -> Iterator[dict[int, FreeSize]]:
    """Multiples of 2, 4, 8 and so on: a model can refuse others by a line of code that is not in the graph."""
    spatial = [axis for axis, size in assured.items() if axis and size.step == 1]
    for step in (1 << power for power in range(1, 8)):
        if spatial and all(own[axis] % step == 0 for axis in spatial):
            multiples = {axis: FreeSize(-(-assured[axis].min // step) * step, step) for axis in spatial}
            yield {**assured, **multiples}


def _together(holds: Callable[[Shape], bool], shape: Sequence[int], claimed: Mapping[int, FreeSize]) -> bool:
    """Whether shapes at and just above the limits hold, the axes alike and against each other."""
    least = {axis: size.min for axis, size in claimed.items()}
    next_ = {axis: size.min + size.step for axis, size in claimed.items()}
    crossed = {axis: (least, next_)[place % 2][axis] for place, axis in enumerate(claimed)}
    opposite = {axis: (next_, least)[place % 2][axis] for place, axis in enumerate(claimed)}
    return all(holds(_replaced(shape, corner)) for corner in (least, next_, crossed, opposite))


def _replaced(shape: Sequence[int], sizes: Mapping[int, int]) -> Shape:
    return tuple(sizes.get(axis, size) for axis, size in enumerate(shape))


def _rule(allows: Callable[[Shape], bool], captured: Shape, axis: int, numbers: Sequence[int]) -> FreeSize | None:
    """The sizes of an axis that all guards allow, the other axes as captured: those a whole number of steps apart.

    The step is the least after which what the guards allow repeats itself, and the first size the least that has no gap
    above. Of several remainders that the guards allow, as where maps of a half and of a quarter of the size are to fit,
    the captured size's is taken.

    Args:
        allows: The guards.
        captured: Shape of the input.
        axis: Of it.
        numbers: In the guards: sizes to look at.
    """
    own = captured[axis]
    end = 3 * own + 2
    taken = [allows(_replaced(captured, {axis: size})) for size in range(end)]
    step = next((step for step in range(1, own + 1) if taken[own : end - step] == taken[own + step :]), None)
    if step is None or not taken[own]:
        return None
    least = own
    while least - step > 0 and taken[least - step]:
        least -= step
    near = {number - (number - least) % step + more for number in numbers for more in (-step, 0, step)}
    others = math.prod(captured) // own
    beyond = [size for size in near if end <= size <= _MOST // others]
    beyond += [size for power in range(31) if end <= (size := least + (step << power)) <= _MOST // others]
    return FreeSize(least, step) if all(allows(_replaced(captured, {axis: size})) for size in beyond) else None


def _far(captured: Shape, rules: Mapping[int, FreeSize]) -> Iterator[Shape]:
    """Shapes within the rules of the axes, larger and larger: all, those of the image, and each alone."""
    for power in range(31):
        large = {axis: max(captured[axis], rule.min + (rule.step << power)) for axis, rule in rules.items()}
        for growing in (set(rules), set(rules) - {0}, *({axis} for axis in rules)):
            shape = _replaced(captured, {axis: size for axis, size in large.items() if axis in growing})
            if math.prod(shape) <= _MOST:
                yield shape


def _guard(program: ExportedProgram) -> Callable[[Shape], bool]:
    """Whether a program's guards and ranges allow a shape of its input."""
    codes = [compile(_SIZE.sub(r"size[\2]", guard), "guard", "eval") for guard in program._guards_code]
    ranges = {axis: program.range_constraints[symbol] for axis, symbol in _symbols(program).items()}

    def allows(shape: Shape) -> bool:
        # a lower limit of 2 is the exporter's own, and no guard of `ExportedProgram.module` is made of it
        if any((r.lower > 2 and shape[axis] < r.lower) or shape[axis] > r.upper for axis, r in ranges.items()):
            return False
        try:
            return all(eval(code, {"math": math, "torch": torch, "size": shape}) for code in codes)
        except ArithmeticError:  # a division by a size that would be 0
            return False

    return allows


def _assert_sizes(program: ExportedProgram, claimed: Mapping[int, FreeSize], source: str) -> None:
    _set_least(program, {axis: size.min for axis, size in claimed.items()})
    program._guards_code = [
        f"({source}.size()[{axis}] % {size.step}) == {size.min % size.step}"
        for axis, size in claimed.items()
        if size.step > 1
    ]
    # of a lower limit above 2, `ExportedProgram.module` makes the guard
    program._guards_code += [f"{source}.size()[{axis}] >= 2" for axis, size in claimed.items() if size.min == 2]


def _source(program: ExportedProgram, model: nn.Module) -> str:
    """The input as guards name it."""
    if source := _source_in_guards(program):
        return source
    name, parameter = next(iter(inspect.signature(model.forward).parameters.items()))
    return f"L['{name}'][0]" if parameter.kind is inspect.Parameter.VAR_POSITIONAL else f"L['{name}']"


def _source_in_guards(program: ExportedProgram) -> str | None:
    return next((found.group(1) for found in map(_SIZE.search, program._guards_code) if found), None)


def _free_batch(program: ExportedProgram) -> dict[int, FreeSize]:
    """The first axis, where it is the same free size in each of several inputs."""
    named = {node.name: node.meta["val"] for node in program.graph.find_nodes(op="placeholder")}
    shapes = [named[name].shape for name in program.graph_signature.user_inputs]
    first = {shape[0].node.expr for shape in shapes if shape and isinstance(shape[0], torch.SymInt)}
    if len(first) != 1 or not all(shape and isinstance(shape[0], torch.SymInt) for shape in shapes):
        return {}
    return {0: FreeSize(int(program.range_constraints[first.pop()].lower))}


def _set_least(program: ExportedProgram, least: Mapping[int, int]) -> None:
    for axis, symbol in _symbols(program).items():
        if axis in least:
            program.range_constraints[symbol] = ValueRanges(least[axis], program.range_constraints[symbol].upper)


def _input(program: ExportedProgram) -> torch.Tensor:
    name = program.graph_signature.user_inputs[0]
    return next(node.meta["val"] for node in program.graph.nodes if node.name == name)


def _symbols(program: ExportedProgram) -> dict:
    """By axis of the input, the symbol that stands for its size. An axis that is tied to another has none."""
    sizes = {axis: size.node.expr for axis, size in enumerate(_input(program).shape) if isinstance(size, torch.SymInt)}
    return {axis: size for axis, size in sizes.items() if size.is_symbol and list(sizes.values()).count(size) == 1}
