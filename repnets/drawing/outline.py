"""Outline of a network's graph for a picture: steps with short labels, grouped by the author's blocks."""

import re
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from operator import attrgetter, getitem

import torch
from torch import fx, nn

from repnets.fusion.fused_layers import BorderConv, PooledLinear, ScaleShift
from repnets.fusion.graph import arguments
from repnets.fusion.input_sizes import InputSizes
from repnets.fusion.report import FoldedRegion

Shapes = Mapping[fx.Node, tuple[int, ...]]

_ACTIVATIONS = {
    "elu": "ELU", "gelu": "GELU", "hardsigmoid": "hard sigmoid", "hardswish": "hard swish", "hardtanh": "ReLU6",
    "leaky_relu": "leaky ReLU", "mish": "Mish", "prelu": "PReLU", "relu": "ReLU", "relu6": "ReLU6",
    "sigmoid": "sigmoid", "silu": "SiLU", "softmax": "softmax", "_softmax": "softmax", "tanh": "tanh",
}  # fmt: skip
_NORMS = {"batch_norm": "BN", "group_norm": "GN", "layer_norm": "LN"}
_SILENT = {  # give the values they take, perhaps in another shape
    "_to_copy", "_unsafe_view", "alias", "clone", "contiguous", "detach", "dropout", "expand", "feature_dropout",
    "flatten", "lift_fresh_copy", "reshape", "squeeze", "unflatten", "unsqueeze", "view",
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One operation of a graph.

    Attributes:
        name: Of its node.
        kind: "input", "convolution", "linear", "norm", "sum", "activation", "other" or "output".
        label: What it does, such as "conv 3×3".
        detail: Channels and stride, such as "48 → 96, /2"; empty where there is nothing to say.
        inputs: Names of the steps whose values it takes.
        stack: (path, type) of each module around it, outermost first, without the network itself; the path
            ends in "@1" the second time that the module is called. Empty in a fused network.
        module: Path of the module that it is, for a folded convolution; else empty.
        parameters: Elements of the parameters that it reads.
        shape: Of its value, where that is known.
    """

    name: str
    kind: str
    label: str
    detail: str = ""
    inputs: tuple[str, ...] = ()
    stack: tuple[tuple[str, str], ...] = ()
    module: str = ""
    parameters: int = 0
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Block:
    """A part of a network that is drawn as one box.

    Attributes:
        name: Path of its module, as in the steps' stacks; the name of the step for what the network's own
            forward does.
        type_name: Of the module's class; empty for such a step.
        steps: What happens in it, in the order of the graph.
    """

    name: str
    type_name: str
    steps: tuple[Step, ...]


# Steps


def read(module: fx.GraphModule, shapes: Shapes | None = None) -> list[Step]:
    """The steps of a captured or fused network, in order, from its input to its output.

    Constants and what computes them are left out, and so is what only passes values on: dropout, a view.

    Args:
        module: A captured network with its batch norms flattened, or the module of a `FuseResult`.
        shapes: Of the values of its nodes, for the steps' own.
    """
    steps: list[Step] = []
    sources: dict[fx.Node, tuple[str, ...]] = {}  # of each node: the steps whose values it holds
    for node in module.graph.nodes:
        sources[node] = tuple(dict.fromkeys(name for one in node.all_input_nodes for name in sources[one]))
        if node.op == "call_function" and not _gives_tensors(node):
            sources[node] = ()
        if node.op in ("placeholder", "output") or (sources[node] and not _is_silent(node, module)):
            step = _step(node, module)
            steps.append(replace(step, inputs=sources[node], stack=_stack(node), shape=(shapes or {}).get(node, ())))
            sources[node] = (step.name,)
    return steps


def _gives_tensors(node: fx.Node) -> bool:
    if node.target is getitem:
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False  # arithmetic of sizes
    return "Tensor" in str(node.target._schema.returns[0].type)


def _is_silent(node: fx.Node, module: fx.GraphModule) -> bool:
    if node.op == "call_module":
        return isinstance(module.get_submodule(node.target), InputSizes)
    return node.target is getitem or (node.op == "call_function" and _operator(node) in _SILENT)


def _operator(node: fx.Node) -> str:
    return node.target._schema.name.removeprefix("aten::").rstrip("_")


def _stack(node: fx.Node) -> tuple[tuple[str, str], ...]:
    levels = []
    for key, (path, kind) in node.meta.get("nn_module_stack", {}).items():
        call = key.partition("@")[2]  # which call it is, from the second on
        name = path.partition("@")[0]
        if name:
            type_name = getattr(kind, "__name__", str(kind)).rpartition(".")[2]
            levels.append((f"{name}@{call}" if call else name, type_name))
    return tuple(levels)


def _step(node: fx.Node, module: fx.GraphModule) -> Step:
    if node.op in ("placeholder", "output"):
        kind = "input" if node.op == "placeholder" else "output"
        return Step(node.name, kind, kind)
    if node.op == "call_module":
        made = module.get_submodule(node.target)
        own = Step(node.name, *_of_module(made), module=node.target)
        return replace(own, parameters=sum(tensor.numel() for tensor in made.parameters()))
    tensors = [attrgetter(one.target)(module) for one in node.all_input_nodes if one.op == "get_attr"]
    parameters = sum(tensor.numel() for tensor in tensors if isinstance(tensor, nn.Parameter))
    return replace(Step(node.name, *_of_operator(node, module)), parameters=parameters)


def _of_module(made: nn.Module) -> tuple[str, str, str]:
    """Kind, label and detail."""
    if isinstance(made, BorderConv):
        kind, label, detail = _of_module(made.conv)
        return kind, f"{label} + border", detail
    if isinstance(made, PooledLinear):
        kind, label, detail = _of_module(made.linear)
        return kind, f"mean, {label}", detail
    if isinstance(made, ScaleShift):
        return "other", "× constant + constant", ""
    if isinstance(made, nn.Linear):
        return "linear", "linear", f"{made.in_features} → {made.out_features}"
    return _convolution(made.weight.shape, made.stride, made.groups, transposed=made.transposed)


def _of_operator(node: fx.Node, module: fx.GraphModule) -> tuple[str, str, str]:
    """Kind, label and detail."""
    operator = _operator(node)
    if operator.startswith("conv") or operator == "linear":
        named = arguments(node)
        weight = named["weight"]
        size = tuple(attrgetter(weight.target)(module).shape) if weight.op == "get_attr" else ()
        if operator == "linear":
            return "linear", "linear", f"{size[1]} → {size[0]}" if size else ""
        if not size:
            return "convolution", "conv", ""
        return _convolution(size, named["stride"], named["groups"], transposed="transpose" in operator)
    norm = next((label for name, label in _NORMS.items() if name in operator), None)
    if norm:
        return "norm", norm, ""
    if operator in _ACTIVATIONS:
        return "activation", _ACTIVATIONS[operator], ""
    if operator in ("add", "sub", "mul", "div"):
        variables = [one for one in node.all_input_nodes if one.op != "get_attr"]
        sign = {"add": "+", "sub": "−", "mul": "×", "div": "÷"}[operator]
        return ("sum", sign, "") if len(variables) > 1 else ("other", f"{sign} constant", "")
    return "other", re.sub(r"\dd$", "", operator.strip("_")).replace("_", " "), ""


def _convolution(
    weight: Sequence[int], stride: Sequence[int], groups: int, *, transposed: bool
) -> tuple[str, str, str]:
    out_channels, in_channels = weight[0], weight[1] * groups
    if transposed:
        out_channels, in_channels = in_channels, out_channels
    label = f"{'transposed ' if transposed else ''}conv {'×'.join(map(str, weight[2:]))}"
    depthwise = groups > 1 and groups == in_channels
    parts = [
        f"{in_channels} → {out_channels}",
        "depthwise" if depthwise else f"{groups} groups" if groups > 1 else "",
        f"{'×' if transposed else '/'}{max(stride)}" if max(stride) > 1 else "",
    ]
    return "convolution", label, ", ".join(part for part in parts if part)


# What became of them


def origins(fused: Iterable[Step], original: Iterable[Step], regions: Iterable[FoldedRegion]) -> dict[str, list[str]]:
    """For each step of a fused network, the names of the original steps that it stands for.

    Args:
        fused: Of the fused module.
        original: Of the network that it was made from.
        regions: Of the fuse's report, in the order of the graph.
    """
    known = {step.name for step in original}
    waiting: dict[str, deque[FoldedRegion]] = defaultdict(deque)
    for region in regions:
        waiting[region.name].append(region)  # a module that is called twice has a region for each call
    found: dict[str, list[str]] = {}
    for step in fused:
        if waiting[step.module]:
            found[step.name] = [name for name in waiting[step.module].popleft().nodes if name in known]
        elif step.name in known:  # left as it was; inputs and outputs too
            found[step.name] = [step.name]
        else:  # something that fusing put there: it belongs to what comes before it
            found[step.name] = [found[name][-1] for name in step.inputs[:1] if found[name]]
    return found


# Blocks


def blocks(steps: Iterable[Step]) -> list[Block]:
    """The steps by the module that an author would call a block, in order of their first steps.

    From the network downwards, a module is opened where its class does nothing but call others, wherever it
    is used, and holds more than one convolution or just one module: nn.Sequential, a stage. Anything else,
    such as a block that adds its branches or a convolution with its batch norm, is a block.
    """
    steps = [step for step in steps if step.kind not in ("input", "output")]
    opened = _opened(steps)
    members: dict[tuple[str, str], list[Step]] = defaultdict(list)
    for step in steps:
        block = next((level for level in step.stack if level[0] not in opened), (step.name, ""))
        members[block].append(step)
    return [Block(name, kind, tuple(inside)) for (name, kind), inside in members.items()]


def _opened(steps: Sequence[Step]) -> set[str]:
    """Paths of the modules that are looked into."""
    working = set()  # types with steps of their own
    children: dict[str, set[str]] = defaultdict(set)
    heavy: dict[str, int] = defaultdict(int)
    types: dict[str, str] = {}
    for step in steps:
        if step.stack:
            working.add(step.stack[-1][1])
        for place, (path, kind) in enumerate(step.stack):
            types[path] = kind
            heavy[path] += step.kind in ("convolution", "linear")
            children[path].update(below for below, _ in step.stack[place + 1 : place + 2])
    return {
        path for path, kind in types.items() if kind not in working and (heavy[path] > 1 or len(children[path]) == 1)
    }


def size_text(shape: Sequence[int]) -> str:
    """A shape without its batch, such as "48 × 56 × 56"."""
    return " × ".join(map(str, shape[1:]))


def change_text(before: Sequence[int], after: Sequence[int]) -> str:
    """What becomes of a feature map: channels, and by how much its sides shrink, such as "48 → 96, /2".

    Empty for a sequence of tokens, (N, length, channels), which nothing tells from a signal.
    """
    if min(len(before), len(after)) < 2 or 3 in (len(before), len(after)):
        return ""
    sides = len(before) - 2
    factor = round((prod(before[2:]) / prod(after[2:])) ** (1 / sides)) if len(before) == len(after) and sides else 1
    return f"{before[1]} → {after[1]}" + (f", /{factor}" if factor > 1 else "")
