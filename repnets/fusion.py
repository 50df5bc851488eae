"""Fold the linear regions of a captured network into single convolutions, and report."""

import copy
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, count
from operator import attrgetter

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from repnets import kernels
from repnets.exporting import capture, require_eval, require_sound_numbers, require_stateless
from repnets.graphs import (
    ADD,
    BATCH_NORM,
    CONVOLUTIONS,
    common_path,
    flatten_batch_norms,
    module_path,
    multiply_accumulates,
    node_shapes,
    positions,
)
from repnets.regions import Refusal, Region, Shapes, find_regions, refuse
from repnets.report import FoldedRegion, FuseReport, Totals

_CONV_MODULES = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TOLERANCE = 1e-10  # relative, float64; an exact fold is below 1e-14


@dataclass(frozen=True)
class FuseResult:
    """A fused network and the account of how it came about.

    Attributes:
        module: The network as a graph of ATen calls, in eval mode, on the CPU, without gradients. Each folded
            region is one convolution module, named by the path of what it replaced; every other parameter
            keeps its name. It can be copied, pickled and captured again. Its behaviour is fixed at capture:
            `train()` changes a flag and no result.
        report: What was folded, and what was not and why.
    """

    module: fx.GraphModule
    report: FuseReport


def fuse(model: nn.Module, example_input: Tensor) -> FuseResult:
    """A new network that computes what `model` does, with each linear region folded into one convolution.

    Kernels are folded in float64 and rounded to the model's dtype once. Each region is checked in float64
    against the nodes it replaces, at two input sizes; one that fails stays unfused, with a warning.

    Args:
        model: In eval mode, on any device; it is copied, not changed.
        example_input: (N, C, *spatial), as for `capture`. Costs are counted for one input of its size.

    Raises:
        RepnetsError: As for `capture`; a parameter or buffer is NaN or infinite; a running variance is
            negative; or the model's forward changes its own buffers.
    """
    require_eval(model)
    require_sound_numbers(model)
    program = capture(model, example_input)
    require_stateless(program)
    captured = program.module(check_guards=False)
    graph = captured.graph
    flatten_batch_norms(graph)
    tensors = {node.target: attrgetter(node.target)(captured) for node in graph.nodes if node.op == "get_attr"}
    shapes = node_shapes(graph, (1, *example_input.shape[1:]))
    regions, refusals = find_regions(graph, tensors, shapes)

    made: dict[str, _Fold] = {}
    folds: dict[Region, _Fold] = {}
    failures = []
    for region in regions:
        signature = _signature(region)
        if signature not in made:
            made[signature] = _fold(region, tensors)
        fold = made[signature]
        if fold.is_exact:
            folds[region] = fold
        else:
            failures.append(_failure(region, fold))
    live = _live_nodes(graph, folds)
    names = _names(folds, [node.target for node in live if node.op == "get_attr"])
    module = _rebuild(live, folds, names, tensors, program.call_spec.out_spec)
    rows = tuple(_account(region, fold, names[fold], tensors, shapes) for region, fold in folds.items())
    targets = {region.target for region in folds}
    report = FuseReport(
        input_shape=_free_sizes(graph),
        before=_totals(graph.nodes, (), shapes, model),
        after=_totals([node for node in live if node not in targets], rows, shapes, module),
        regions=rows,
        refusals=(*refusals, *failures),
    )
    return FuseResult(module, report)


# Folding a region


@dataclass(frozen=True, eq=False)
class _Fold:
    """The convolution made of a region, and how far it is from the nodes it replaces."""

    convolution: nn.Module
    error_float64: float
    error_float32: float

    @property
    def is_exact(self) -> bool:
        rounded_well = all(tensor.isfinite().all() for tensor in self.convolution.parameters())
        return self.error_float64 <= _TOLERANCE and rounded_well


def _fold(region: Region, tensors: Mapping[str, Tensor]) -> _Fold:
    exact = _convolution(region.operator)
    single = copy.deepcopy(exact).float()
    errors = []
    generator = torch.Generator().manual_seed(0)
    for steps in (2, 3):
        size = [
            (kernel - 1) * dilation + steps * stride + steps
            for kernel, dilation, stride in zip(exact.kernel_size, exact.dilation, exact.stride, strict=True)
        ]
        x = torch.randn(2, region.operator.in_channels, *size, generator=generator, dtype=torch.float64)
        wanted = _run(region, tensors, x)
        errors.append([_difference(exact(x), wanted), _difference(single(x.float()), wanted)])
    worst = torch.tensor(errors, dtype=torch.float64).amax(0)  # unlike max(), this lets a NaN through
    return _Fold(exact.to(region.target.meta["val"].dtype), *worst.tolist())


def _convolution(operator: kernels.AffineConv) -> nn.Module:
    """The float64 convolution module that computes `operator`."""
    shape = kernels.conv_shape(operator)
    convolution = _CONV_MODULES[len(shape.stride)](**vars(shape), bias=True, device="meta", dtype=torch.float64)
    # there is a bias even where it is zero, so that the structure depends on the network and not its weights
    convolution.weight = nn.Parameter(kernels.conv_weight(operator), requires_grad=False)
    convolution.bias = nn.Parameter(operator.bias.clone(), requires_grad=False)
    return convolution.eval()


def _run(region: Region, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """What the region's own nodes make of `x`, with their parameters in float64."""
    values = {region.source: x}

    def value(node: fx.Node) -> Tensor:
        return values[node] if node in values else tensors[node.target].double()

    for node in region.body:
        values[node] = node.target(*fx.map_arg(node.args, value), **fx.map_arg(node.kwargs, value))
    return values[region.target]


def _difference(got: Tensor, wanted: Tensor) -> float:
    """Largest absolute difference relative to the largest wanted value."""
    return ((got.double() - wanted).abs().max() / wanted.abs().max().clamp_min(1e-300)).item()


def _signature(region: Region) -> str:
    """Equal for regions that do the same with the same parameters, such as two calls of one block."""
    places = {node: f"%{place}" for place, node in enumerate((region.source, *region.body))}

    def label(node: fx.Node) -> str:
        return places.get(node, node.target)

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
        stacklevel=3,
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
    live: Iterable[fx.Node],
    folds: Mapping[Region, _Fold],
    names: Mapping[_Fold, str],
    tensors: Mapping[str, Tensor],
    out_spec: pytree.TreeSpec,
) -> fx.GraphModule:
    by_target = {region.target: region for region in folds}
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in live:
        if node.op == "output":
            leaves = [copies[leaf] if isinstance(leaf, fx.Node) else leaf for leaf in node.args[0]]
            graph.output(pytree.tree_unflatten(leaves, out_spec))
        elif node in by_target:
            region = by_target[node]
            copies[node] = graph.call_module(names[folds[region]], (copies[region.source],))
        else:
            copies[node] = graph.node_copy(node, copies.__getitem__)
            copies[node].meta = {}
    modules = {names[fold]: fold.convolution for fold in folds.values()}
    return fx.GraphModule({**tensors, **modules}, graph, class_name="FusedNetwork").eval()


def _names(folds: Mapping[Region, _Fold], remaining: list[str]) -> dict[_Fold, str]:
    """A module path for each fold, none at, above or below another or a remaining parameter.

    It is the path of all that was folded; where other things live below that path, it is the path of the
    largest convolution folded, with a number if that is taken.
    """
    owners: dict[_Fold, Region] = {}
    for region, fold in folds.items():
        owners.setdefault(fold, region)
    shared = {fold: common_path([module_path(node) for node in r.removed]) for fold, r in owners.items()}
    names: dict[_Fold, str] = {}
    for fold, region in owners.items():
        own = shared[fold]
        others = [*remaining, *(path for other, path in shared.items() if other is not fold)]
        alone = own and not any(_is_within(path, own) for path in others)
        largest = module_path(_largest_convolution(region)) or "conv"
        candidates = chain(
            [own] if alone else [],
            [largest, *(f"{largest}_{number}" for number in range(2, len(owners) + 1))],
            (f"{largest.replace('.', '_')}_{number}" for number in count(2)),
        )
        taken = [*remaining, *names.values()]
        names[fold] = next(
            name for name in candidates if not any(_is_within(name, t) or _is_within(t, name) for t in taken)
        )
    return names


def _largest_convolution(region: Region) -> fx.Node:
    convolutions = [node for node in region.removed if node.target in CONVOLUTIONS]
    return max(convolutions, key=lambda node: node.args[1].meta["val"].numel())


def _is_within(path: str, ancestor: str) -> bool:
    return f"{path}.".startswith(f"{ancestor}.")


# Accounts


def _free_sizes(graph: fx.Graph) -> tuple[int | None, ...]:
    inputs = next(node.meta["val"] for node in graph.nodes if node.op == "placeholder")
    return tuple(None if isinstance(size, torch.SymInt) else size for size in inputs.shape)


def _account(region: Region, fold: _Fold, name: str, tensors: Mapping[str, Tensor], shapes: Shapes) -> FoldedRegion:
    shape = kernels.conv_shape(region.operator)
    constants = {node.target for folded in region.removed for node in folded.all_input_nodes if node.op == "get_attr"}
    return FoldedRegion(
        name=name,
        output=region.target.name,
        nodes=tuple(node.name for node in region.removed),
        paths=tuple(dict.fromkeys(module_path(node) for node in region.removed)),
        convolutions=sum(node.target in CONVOLUTIONS for node in region.removed),
        batch_norms=sum(node.target is BATCH_NORM for node in region.removed),
        **vars(shape),
        macs_before=sum(multiply_accumulates(node, shapes) for node in region.removed),
        macs_after=shape.macs_per_position * positions(shapes[region.target]),
        parameters_before=sum(tensors[c].numel() for c in constants if isinstance(tensors[c], nn.Parameter)),
        parameters_after=sum(tensor.numel() for tensor in fold.convolution.parameters()),
        error_float64=fold.error_float64,
        error_float32=fold.error_float32,
    )


def _totals(nodes: Iterable[fx.Node], rows: tuple[FoldedRegion, ...], shapes: Shapes, module: nn.Module) -> Totals:
    nodes = list(nodes)
    return Totals(
        convolutions=sum(node.target in CONVOLUTIONS for node in nodes) + len(rows),
        batch_norms=sum(node.target is BATCH_NORM for node in nodes),
        additions=sum(node.target is ADD for node in nodes),
        parameters=sum(tensor.numel() for tensor in module.parameters()),
        macs=sum(multiply_accumulates(node, shapes) for node in nodes) + sum(row.macs_after for row in rows),
    )
