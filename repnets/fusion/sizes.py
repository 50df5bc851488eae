"""The input sizes that a captured program takes: found by trial, and then asserted by the program itself.

torch.export takes some sizes for impossible that are not, such as those at which the last feature map is one pixel, and
writes guards against them into the program. Others of its guards are needed: a padding to whole windows, say, is
captured for the one remainder that the example had.
"""

import inspect
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves
from torch.utils._sympy.value_ranges import ValueRanges

_SIZE = re.compile(r"(L\['\w+'\](?:\[\d+\])*)\.size\(\)\[(\d+)\]")
_TOLERANCE = 1e-3  # of the largest output: the same operations, in the same order, at one more size
_TRIED = 4  # sizes of each kind

Shape = tuple[int, ...]


@dataclass(frozen=True)
class FreeSize:
    """Sizes of one axis that a program takes: `min`, `min + step`, and so on, without end."""

    min: int
    step: int = 1

    def __contains__(self, size: int) -> bool:
        return size >= self.min and (size - self.min) % self.step == 0


def graph_module(program: ExportedProgram) -> GraphModule:
    """The network of a program as a graph to be rewritten: without the call that asserts its input sizes."""
    return program.module(check_guards=False)


def free_sizes(program: ExportedProgram) -> dict[int, FreeSize]:
    """By axis of the input: the sizes that the program's guards allow, the other axes as they were captured.

    Axes that are not named are fixed. Axes whose sizes follow no rule of the form of `FreeSize` are left out too.
    """
    return {axis: size for axis in _symbols(program) if (size := _assured(program, axis))}


def by_name(sizes: dict[int, FreeSize], rank: int) -> dict[str, FreeSize]:
    """Free sizes by the name of their axis: ``batch``, ``height`` and ``width`` of images (N, C, H, W)."""
    spatial = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}
    names = ("batch", "channels", *spatial.get(rank - 2, map(str, range(2, rank))))
    return {names[axis]: size for axis, size in sizes.items()}


def settle_sizes(program: ExportedProgram, model: nn.Module) -> bool:
    """Let a program allow the sizes that it computes right, and no others, in place.

    A size that a guard forbids is tried: it is allowed where the program gives there what the model gives.

    Args:
        program: Captured from `model`, one input with free axes. Its guards and ranges are replaced.
        model: The module that was captured, on the CPU.

    Returns:
        Whether every free axis has a rule that holds, also together with the others. If not, the program is of no use.
    """
    assured = free_sizes(program)
    if assured.keys() != _symbols(program).keys():
        return False
    _set_least(program, dict.fromkeys(assured, 1))  # the trial's graph is to refuse no size
    small = list(program.example_inputs[0][0].shape)
    for axis, size in assured.items():
        small[axis] = size.min
    trial = _Trial(model, graph_module(program), program.example_inputs[0][0])
    claimed = {axis: _widest(trial, axis, size, small, list(assured)) for axis, size in assured.items()}
    if not all(trial(_replaced(small, corner)) for corner in _corners(claimed)):
        claimed = assured
        if not all(trial(_replaced(small, corner)) for corner in _corners(claimed)):
            return False
    _assert_sizes(program, claimed, _source(program, model))
    return True


@dataclass(frozen=True)
class _Trial:
    """Whether a program gives at a shape what its model gives there."""

    model: nn.Module
    graph: GraphModule
    example: Tensor

    def __call__(self, shape: Sequence[int]) -> bool:
        x = self._input(shape)
        try:
            with torch.no_grad():
                want, got = tree_leaves(self.model(x.clone())), tree_leaves(self.graph(x.clone()))
        except Exception:  # whatever layer does not take that size
            return False
        return len(want) == len(got) and all(map(_agree, got, want))

    def _input(self, shape: Sequence[int]) -> Tensor:
        if self.example.is_floating_point():
            generator = torch.Generator().manual_seed(0)
            return torch.rand(tuple(shape), generator=generator).to(self.example.dtype)
        repeats = [-(-size // own) for size, own in zip(shape, self.example.shape, strict=True)]
        return self.example.repeat(repeats)[tuple(slice(size) for size in shape)].contiguous()


def _agree(got: object, want: object) -> bool:
    if not isinstance(want, Tensor) or not isinstance(got, Tensor):
        return got == want
    if got.shape != want.shape:
        return False
    scale = float(want.detach().double().abs().nan_to_num().max()) if want.numel() else 0.0
    return torch.allclose(got.double(), want.double(), rtol=0, atol=_TOLERANCE * scale, equal_nan=True)


def _widest(trial: _Trial, axis: int, assured: FreeSize, small: Sequence[int], axes: Sequence[int]) -> FreeSize:
    """The most sizes of an axis that hold on trial."""
    spatial = [one for one in axes if one] if axis else [0]

    def holds(size: int) -> bool:
        return trial(_replaced(small, {axis: size})) and trial(_replaced(small, dict.fromkeys(spatial, size)))

    step = assured.step
    if step > 1 and all(holds(assured.min + more) for more in range(1, _TRIED)):
        step = 1
    below = range((assured.min - 1) % step + 1, assured.min, step)
    if not below or not holds(below[-1]):
        return FreeSize(assured.min, step)
    low, high = 0, len(below) - 1
    while low < high:
        middle = (low + high) // 2 if low else 0
        low, high = (low, middle) if holds(below[middle]) else (middle + 1, high)
    between = below[high :: max(1, (len(below) - high) // _TRIED)]
    return FreeSize(below[high] if all(map(holds, between)) else assured.min, step)


def _corners(claimed: dict[int, FreeSize]) -> list[dict[int, int]]:
    """Shapes at and just above the limits, the axes alike and against each other."""
    least = {axis: size.min for axis, size in claimed.items()}
    next_ = {axis: size.min + size.step for axis, size in claimed.items()}
    crossed = {axis: (least, next_)[place % 2][axis] for place, axis in enumerate(claimed)}
    opposite = {axis: (next_, least)[place % 2][axis] for place, axis in enumerate(claimed)}
    return [least, next_, crossed, opposite]


def _replaced(shape: Sequence[int], sizes: dict[int, int]) -> Shape:
    return tuple(sizes.get(axis, size) for axis, size in enumerate(shape))


def _assured(program: ExportedProgram, axis: int) -> FreeSize | None:
    """The sizes of an axis that all guards allow, from the least on from which they follow one rule."""
    captured = tuple(program.example_inputs[0][0].shape)
    allows = _guard(program)
    sizes = [size for size in range(1, 2 * captured[axis] + 2) if allows(_replaced(captured, {axis: size}))]
    if len(sizes) < 2 or sizes[-1] <= captured[axis]:
        return None
    step, least = sizes[-1] - sizes[-2], sizes[-1]
    for size in reversed(sizes[:-1]):
        if least - size != step:
            break
        least = size
    return FreeSize(least, step) if least <= captured[axis] else None


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


def _assert_sizes(program: ExportedProgram, claimed: dict[int, FreeSize], source: str) -> None:
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
    if found := next(filter(None, map(_SIZE.search, program._guards_code)), None):
        return found.group(1)
    name, parameter = next(iter(inspect.signature(model.forward).parameters.items()))
    return f"L['{name}'][0]" if parameter.kind is inspect.Parameter.VAR_POSITIONAL else f"L['{name}']"


def _set_least(program: ExportedProgram, least: dict[int, int]) -> None:
    for axis, symbol in _symbols(program).items():
        program.range_constraints[symbol] = ValueRanges(least[axis], program.range_constraints[symbol].upper)


def _symbols(program: ExportedProgram) -> dict:
    """By axis of the input, the symbol that stands for its size."""
    name = program.graph_signature.user_inputs[0]
    value = next(node.meta["val"] for node in program.graph.nodes if node.name == name)
    return {axis: size.node.expr for axis, size in enumerate(value.shape) if isinstance(size, torch.SymInt)}
