"""Fold the linear regions of a captured network into single convolutions, and report."""

import copy
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, count, pairwise
from math import prod
from operator import attrgetter
from time import perf_counter
from typing import Literal

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from repnets.fusion import conv_params
from repnets.fusion.analysis import analyse
from repnets.fusion.arguments import Example, require_options, unwrapped
from repnets.fusion.branches import summands
from repnets.fusion.capture import export, on_cpu, require_sound_numbers, require_stateless
from repnets.fusion.constants import Constants
from repnets.fusion.cost_model import Cost, CostModel, Shapes
from repnets.fusion.fused_layers import ScaleShift, layer_of, scale_of
from repnets.fusion.graph import (
    BATCH_NORM,
    CONVOLUTIONS,
    LAYERS,
    aten,
    calls,
    common_path,
    module_path,
    multiply_accumulates,
    node_shapes,
)
from repnets.fusion.input_sizes import InputSizes
from repnets.fusion.network_check import checked_sizes
from repnets.fusion.outputs import Outputs, is_plain
from repnets.fusion.plan import Refusal, Region, find_regions, refuse
from repnets.fusion.region_check import region_error
from repnets.fusion.report import FoldedRegion, FuseReport, Totals
from repnets.fusion.resampling import move_to_fewer_positions
from repnets.fusion.simplification import add_up_stacks, merge_equal_calls, simplify
from repnets.fusion.sizes import FreeSize, by_name, free_sizes, graph_module

_TOLERANCE = 1e-10  # relative, float64; an exact fold is below 1e-14


@dataclass(frozen=True)
class FuseResult:
    """A fused network and the account of how it came about.

    Attributes:
        module: The network as a graph of ATen calls, in eval mode, on the CPU, without gradients. It raises a
            `RepnetsError` for an input of a size that the report does not claim. Each folded
            region is one module, a convolution or linear layer, named by the path of what it replaced; every
            other parameter keeps its name. It can be copied, pickled and captured again. Its behaviour is
            fixed at capture: `train()` changes a flag and no result.
        report: What was folded, and what was not and why.
        original: The graph of ATen calls that was captured of the model, with its parameters: what the report's node
            names stand for.
    """

    module: fx.GraphModule
    report: FuseReport
    original: fx.GraphModule


def fuse(
    model: nn.Module,
    example_input: Example,
    *,
    cost: Cost | None = None,
    border: Literal["refuse", "exact"] = "refuse",
) -> FuseResult:
    """A new network that computes what `model` does, with each linear region folded into one layer.

    Kernels are folded in float64 and rounded to the model's dtype once. Each region is checked in float64
    against the nodes it replaces, at two input sizes; one that fails stays unfused, with a warning. The finished
    network is compared with the model at the example, and at more sizes of every axis that is free.

    Args:
        model: In eval mode, on any device; it is copied, not changed. Of half precision too, in which the folded
            weights are then rounded once, from float64. A wrapper of `torch.compile`, `AveragedModel` or data
            parallelism is taken off.
        example_input: (N, C, *spatial), or a tuple of several, as for `capture`. Costs are counted for one input of its
            size.
        cost: Seconds, or any other measure, that a call's `repnets.fusion.cost_model.Work` costs; a region is folded
            where that makes the sum of them smaller. Default: `repnets.fusion.cost_model.CostModel()`.
        border: What to do where one kernel would be wrong at the border, because a layer before a zero
            padding has a bias: "refuse" leaves the layers apart, "exact" allows a second convolution, on a
            map of ones, that makes up for it. Default "refuse".

    Raises:
        RepnetsError: As for `capture`; a parameter or buffer is NaN, infinite or complex, or a layer quantized; a
            running variance is negative; the model's forward changes its own buffers; or the finished network differs
            from the model at the example.
    """
    clock = [perf_counter()]
    require_options(cost, border)
    model = unwrapped(model)
    require_sound_numbers(model)
    private, examples = on_cpu(model, example_input)
    program = export(private, examples)
    require_stateless(program)
    free = free_sizes(program)
    captured = graph_module(program)
    graph = captured.graph
    simplify(captured)
    image, cost = (1, *examples[0].shape[1:]), cost or CostModel()
    before = _totals(graph.nodes, {}, node_shapes(graph, image), model)
    merge_equal_calls(graph)
    add_up_stacks(graph)
    clock.append(perf_counter())

    held = {node.target: attrgetter(node.target)(captured) for node in graph.nodes if node.op == "get_attr"}
    tensors = {name: one for name, one in held.items() if isinstance(one, Tensor)}
    constants = Constants(graph, tensors)
    shapes = node_shapes(graph, image)
    with torch.no_grad():
        analysis = analyse(graph, constants, border=border == "exact")
        while move_to_fewer_positions(graph, analysis, shapes, cost):
            shapes = node_shapes(graph, image)
            analysis = analyse(graph, constants, border=border == "exact")
        regions, refusals = find_regions(graph, analysis, shapes, cost)
        clock.append(perf_counter())
        folds, failures = _fold_all(regions, constants, _images(examples[0], free))
    live = _live_nodes(graph, folds)
    folds = {region: fold for region, fold in folds.items() if region.target in live}
    names = _names(folds, [node.target for node in live if node.op == "get_attr"])
    module = _rebuild(live, folds, names, held, program.call_spec.out_spec)
    rows = tuple(_account(region, fold, names[fold], tensors, shapes) for region, fold in folds.items())
    clock.append(perf_counter())
    free = checked_sizes(private, module, examples, free)
    _hold_at_entry(module, examples, free)
    clock.append(perf_counter())
    taken = [tuple(None if axis in free else size for axis, size in enumerate(one.shape)) for one in examples]
    report = FuseReport(
        input_shape=taken[0] if len(taken) == 1 else tuple(taken),
        free=by_name(free, examples[0].dim()),
        before=before,
        after=_totals(live, dict(zip((region.target for region in folds), rows, strict=True)), shapes, module),
        regions=rows,
        refusals=(*refusals, *failures),
        seconds=dict(zip(("capture", "analysis", "emission", "check"), _differences(clock), strict=True)),
    )
    return FuseResult(module, report, captured)


def _images(example: Tensor, free: Mapping[int, FreeSize]) -> list[tuple[int, ...]]:
    """Two shapes of input that a network takes: several images of the example's size, and of a larger one."""
    shapes = []
    for extra in (0, 8):
        sizes = {axis: example.shape[axis] + -(-extra // free[axis].step) * free[axis].step for axis in free}
        if 0 in free:
            sizes[0] = max(2, free[0].min)
        shapes.append(tuple(sizes.get(axis, size) for axis, size in enumerate(example.shape)))
    return shapes


# Folding a region


@dataclass(frozen=True, eq=False)
class _Fold:
    """The layer made of a region, and how far it is from the nodes it replaces."""

    layer: nn.Module
    error_float64: float
    error_float32: float

    @property
    def is_exact(self) -> bool:
        rounded_well = all(tensor.isfinite().all() for tensor in self.layer.parameters())
        return self.error_float64 <= _TOLERANCE and rounded_well


def _fold_all(
    regions: Iterable[Region], constants: Constants, images: list[tuple[int, ...]]
) -> tuple[dict[Region, _Fold], list[Refusal]]:
    made: dict[str, _Fold] = {}
    folds: dict[Region, _Fold] = {}
    failures = []
    for region in regions:
        signature = _signature(region)
        if signature not in made:
            made[signature] = _fold(region, constants, images)
        if made[signature].is_exact:
            folds[region] = made[signature]
        else:
            failures.append(_failure(region, made[signature]))
    return folds, failures


def _fold(region: Region, constants: Constants, images: list[tuple[int, ...]]) -> _Fold:
    wanted = region.target.meta["val"]
    op = region.operator
    exact = scale_of(op) if region.is_scale else layer_of(op, wanted.dim() - 2)
    errors = region_error(region, exact, constants, images)
    return _Fold(exact.to(wanted.dtype), *errors)


def _signature(region: Region) -> str:
    """Equal for regions that do the same with the same parameters, such as two calls of one block."""
    places = {node: f"%{place}" for place, node in enumerate((region.source, *region.body))}

    def label(node: fx.Node) -> str:
        return places.get(node) or (node.target if node.op == "get_attr" else node.name)

    return repr([(node.target, fx.map_arg(node.args, label), fx.map_arg(node.kwargs, label)) for node in region.body])


def _failure(region: Region, fold: _Fold) -> Refusal:
    refusal = refuse(
        region.target,
        f"folding it failed the check: relative error {fold.error_float64:.1e} in float64, "
        f"{fold.error_float32:.1e} in float32",
    )
    warnings.warn(
        f"The linear region that ends at {refusal.node} ({refusal.path}) is left unfused: {refusal.reason}. "
        "Its weights or statistics are out of the usual range; look at the checkpoint.",
        RuntimeWarning,
        stacklevel=4,
    )
    return refusal


# Building the fused network


def _live_nodes(graph: fx.Graph, folds: Iterable[Region]) -> list[fx.Node]:
    """The nodes still needed, in order, when each folded target reads its source alone."""
    source_of = {region.target: region.source for region in folds}
    pending = [node for node in graph.nodes if node.op in ("placeholder", "output")]
    live = set()
    while pending:
        node = pending.pop()
        if node not in live:
            live.add(node)
            pending.extend([source_of[node]] if node in source_of else node.all_input_nodes)
    return [node for node in graph.nodes if node in live]


def _rebuild(
    live: Sequence[fx.Node],
    folds: Mapping[Region, _Fold],
    names: Mapping[_Fold, str],
    held: Mapping[str, Tensor | nn.Module],
    out_spec: pytree.TreeSpec,
) -> fx.GraphModule:
    by_target = {region.target: region for region in folds}
    outputs = _unused("outputs", [*names.values(), *(node.target for node in live if node.op == "get_attr")])
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in live:
        if node.op == "output":
            leaves = [copies[leaf] if isinstance(leaf, fx.Node) else leaf for leaf in node.args[0]]
            results = pytree.tree_unflatten(leaves, out_spec)
            graph.output(results if is_plain(out_spec) else graph.call_module(outputs, tuple(leaves)))
        elif node in by_target:
            region = by_target[node]
            copies[node] = graph.call_module(names[folds[region]], (copies[region.source],))
        else:
            copies[node] = graph.node_copy(node, copies.__getitem__)
            copies[node].meta = {}
    modules = {names[fold]: fold.layer for fold in folds.values()} | {outputs: Outputs(out_spec)}
    own = {node.target: _copied(held[node.target]) for node in graph.nodes if node.op == "get_attr"}
    return fx.GraphModule({**own, **modules}, graph, class_name="FusedNetwork").eval()


def _hold_at_entry(module: fx.GraphModule, examples: Sequence[Tensor], free: Mapping[int, FreeSize]) -> None:
    """Let a network refuse what it does not take, before its first call."""
    inputs = module.graph.find_nodes(op="placeholder")
    for node, example in zip(inputs, examples, strict=True):
        name = _unused("input_sizes", dir(module))
        module.add_submodule(name, InputSizes(tuple(example.shape), free).eval())
        with module.graph.inserting_after(inputs[-1]):
            checked = module.graph.call_module(name, (node,))
        node.replace_all_uses_with(checked, delete_user_cb=lambda user, own=checked: user is not own)
    module.recompile()


def _unused(name: str, taken: Iterable[str]) -> str:
    """A name of a module, with underscores after it where others, or what is below others, have it."""
    first = {one.partition(".")[0] for one in taken}
    while name in first:
        name += "_"
    return name


def _copied(tensor: Tensor | nn.Module) -> Tensor | nn.Module:
    """The captured graph shares the model's parameters, and the fused network shares none."""
    if isinstance(tensor, nn.Module):  # the graph of a branch that is run under a condition
        return copy.deepcopy(tensor)
    copied = tensor.detach().clone()
    return nn.Parameter(copied, requires_grad=False) if isinstance(tensor, nn.Parameter) else copied


def _names(folds: Mapping[Region, _Fold], remaining: list[str]) -> dict[_Fold, str]:
    """A module path for each fold, none at, above or below another or a remaining parameter.

    It is the path of all that was folded; where other things live below that path, it is the path of the
    largest convolution folded, with a number if that is taken.
    """
    owners: dict[_Fold, Region] = {}
    for region, fold in folds.items():
        owners.setdefault(fold, region)
    shared = {fold: common_path([module_path(node) for node in r.removed]) for fold, r in owners.items()}
    below = Counter(chain.from_iterable(map(_with_ancestors, (*remaining, *shared.values()))))
    taken, holding = set(remaining), set(chain.from_iterable(map(_with_ancestors, remaining)))
    numbered: dict[str, Iterator[str]] = {}
    names: dict[_Fold, str] = {}
    for fold, region in owners.items():
        own = shared[fold]
        largest = _path_of_largest(region) or "conv"
        # a name that was taken once stays so: the next fold goes on with the number after it
        rest = numbered.setdefault(
            largest,
            chain(
                [largest, *(f"{largest}_{number}" for number in range(2, len(owners) + 1))],
                (f"{largest.replace('.', '_')}_{number}" for number in count(2)),
            ),
        )
        names[fold] = next(
            name
            for name in chain([own] if own and below[own] == 1 else [], rest)
            if name not in holding and taken.isdisjoint(_with_ancestors(name))
        )
        taken.add(names[fold])
        holding.update(_with_ancestors(names[fold]))
    return names


def _path_of_largest(region: Region) -> str:
    """The module of the largest layer folded; where only its neighbours were, of the last of them."""
    layers = [node for node in region.body if node.target in LAYERS]
    if not layers:
        return module_path(region.target)
    return module_path(max(layers, key=lambda node: node.args[1].meta["val"].numel()))


def _with_ancestors(path: str) -> list[str]:
    return list(accumulate(path.split("."), "{}.{}".format))


# Accounts


def _account(region: Region, fold: _Fold, name: str, tensors: Mapping[str, Tensor], shapes: Shapes) -> FoldedRegion:
    shape = conv_params.conv_shape(region.operator)
    if region.is_scale:
        shape = replace(shape, kernel_size=(), stride=(), padding=(), dilation=())
    branches, identities = summands(region)
    constants = {node.target for folded in region.removed for node in folded.all_input_nodes if node.op == "get_attr"}
    return FoldedRegion(
        name=name,
        kind=type(fold.layer).__name__,
        output=region.target.name,
        nodes=tuple(node.name for node in region.removed),
        paths=tuple(dict.fromkeys(module_path(node) for node in region.removed)),
        branches=branches,
        identities=identities,
        operations=len(calls(region.removed)),
        convolutions=sum(node.target in CONVOLUTIONS for node in region.removed),
        batch_norms=sum(node.target is BATCH_NORM for node in region.removed),
        **vars(shape),
        macs_before=sum(multiply_accumulates(node, shapes) for node in region.removed),
        macs_after=0 if region.is_scale else shape.macs(prod(shapes[region.source]), prod(shapes[region.target])),
        parameters_before=sum(tensors[c].numel() for c in constants if isinstance(tensors[c], nn.Parameter)),
        parameters_after=sum(tensor.numel() for tensor in fold.layer.parameters()),
        error_float64=fold.error_float64,
        error_float32=fold.error_float32,
    )


def _totals(
    nodes: Iterable[fx.Node], folded: Mapping[fx.Node, FoldedRegion], shapes: Shapes, module: nn.Module
) -> Totals:
    left = [node for node in nodes if node not in folded]
    made = list(folded.values())
    return Totals(
        operations=len(calls(left)) + sum(2 if row.kind == ScaleShift.__name__ else 1 for row in made),
        convolutions=sum(node.target in CONVOLUTIONS for node in left) + sum(row.kernel_size != () for row in made),
        batch_norms=sum(node.target is BATCH_NORM for node in left),
        additions=sum(node.target is aten.add.Tensor for node in left),
        parameters=sum(tensor.numel() for tensor in module.parameters()),
        macs=sum(multiply_accumulates(node, shapes) for node in left) + sum(row.macs_after for row in made),
    )


def _differences(clock: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(clock)]
