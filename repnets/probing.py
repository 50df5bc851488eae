"""What int8 would do to each layer of a fused network by itself: to its weight, to its input, and to the logits.

Values are rounded as symmetric int8 holds them, q * scale with q from -127 to 127: a scale for each output channel of a
weight, and one for the whole of an activation (arXiv 1806.08342).
"""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from repnets.graphs import LAYERS
from repnets.layers import CONV_MODULES, BorderConv, PooledLinear

LIMIT = 127
_SEED = 0
_DRAWS = 4  # of random signs, by which the logits of an image are summed
_INNER = {BorderConv: "conv", PooledLinear: "linear"}  # the layer that holds the weight


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution or linear layer of a fused network.

    Attributes:
        name: Qualified name of the module that holds its weight, in the fused network.
        node: Its call, or one of them.
        weight: (out, in // groups, *kernel size).
        channel_axis: Of its input: 1, or -1 for a linear layer.
        call: Computes it, with its bias, for an input and a weight.
    """

    name: str
    node: fx.Node
    weight: Tensor
    channel_axis: int
    call: Callable[[Tensor, Tensor], Tensor]


@dataclass
class Seen:
    """What was measured of a layer.

    Attributes:
        largest: Of the absolute values of its input, for each channel, (in,).
        input_power: Sum of the squares of its input.
        input_noise: Of what rounding takes off it.
        output_noise: Sum of squares of what rounding adds to its output: of the weight, and of the input.
        output_power: Of the output's differences from the mean of their channel.
        logit_noise: Sum of squares of what that adds to the logits, to the first order: of the weight, of the input
            and of both.
    """

    largest: Tensor
    input_power: float = 0.0
    input_noise: float = 0.0
    output_power: float = 0.0
    output_noise: dict[str, float] = field(default_factory=lambda: {"weight": 0.0, "input": 0.0})
    logit_noise: dict[str, float] = field(default_factory=lambda: {"weight": 0.0, "input": 0.0, "both": 0.0})


def rounded(x: Tensor, largest: Tensor) -> Tensor:
    """A tensor as int8 holds it, where `largest` is what 127 stands for; it broadcasts."""
    step = largest.clamp_min(torch.finfo(x.dtype).tiny * LIMIT) / LIMIT
    return (x / step).round().clamp(-LIMIT, LIMIT) * step


def rounded_weight(weight: Tensor, per_channel: bool = True) -> Tensor:
    """A weight as int8 holds it, with a scale for each output channel or one for all."""
    size = weight.abs()
    return rounded(weight, size.amax(tuple(range(1, weight.dim())), keepdim=True) if per_channel else size.max())


def layers_of(module: fx.GraphModule) -> list[Layer]:
    """The convolutions and linear layers of a fused network, in the order of the graph, each once."""
    found: dict[str, Layer] = {}
    for node in module.graph.nodes:
        layer = _layer(module, node)
        if layer is not None:
            found.setdefault(layer.name, layer)
    return list(found.values())


def measure(module: fx.GraphModule, layers: Sequence[Layer], batches: Sequence[Tensor]) -> tuple[dict[str, Seen], float]:
    """Run images through a fused network, and see what int8 would do to each layer while all others stay float.

    What reaches the logits is taken to the first order: the error of a layer's output times the gradient of the logits,
    summed with random signs, which on average gives the sum of the squares of all their errors.

    Args:
        module: The network; it is not changed.
        layers: Of `layers_of`.
        batches: Of images, (N, C, *spatial).

    Returns:
        What was seen of each layer, by name; and the variance of the logits over images and classes, times their number.
    """
    by_node = {
        node: layer for layer in layers for node in module.graph.nodes if (one := _layer(module, node)) is not None
        and one.name == layer.name
    }
    seen: dict[str, Seen] = {}
    with torch.no_grad():
        for images in batches:
            for node, x, _ in _calls(module, images, by_node)[0]:
                size = x.abs().transpose(0, by_node[node].channel_axis).flatten(1).amax(1)
                old = seen.setdefault(by_node[node].name, Seen(size))
                old.largest = torch.maximum(old.largest, size)
    generator = torch.Generator().manual_seed(_SEED)
    weights = {layer.name: rounded_weight(layer.weight.detach()) for layer in layers}
    logits = []
    for images in batches:
        calls, output = _calls(module, images.clone().requires_grad_(), by_node)
        logits.append(output.detach())
        gradients = []
        for draw in range(_DRAWS):
            signs = torch.randint(0, 2, output.shape, generator=generator) * 2.0 - 1
            gradients.append(torch.autograd.grad((output * signs).sum(), [y for *_, y in calls], retain_graph=draw < _DRAWS - 1))
        with torch.no_grad():
            for place, (node, x, y) in enumerate(calls):
                layer = by_node[node]
                one = seen[layer.name]
                x_rounded = rounded(x, one.largest.max())
                off = {"weight": layer.call(x, weights[layer.name]) - y, "input": layer.call(x_rounded, layer.weight) - y}
                one.input_power += float(x.square().sum())
                one.input_noise += float((x_rounded - x).square().sum())
                axis = 1 if layer.channel_axis == 1 else y.dim() - 1
                others = [dim for dim in range(y.dim()) if dim != axis]
                one.output_power += float((y - y.mean(others, keepdim=True)).square().sum())
                for name, error in off.items():
                    one.output_noise[name] += float(error.square().sum())
                for draws in gradients:
                    parts = {name: (draws[place] * error).flatten(1).sum(1) for name, error in off.items()}
                    parts["both"] = parts["weight"] + parts["input"]
                    for name, part in parts.items():
                        one.logit_noise[name] += float(part.square().sum()) / _DRAWS
    together = torch.cat(logits)
    return seen, float(together.var(correction=0)) * together.numel()


def _calls(
    module: fx.GraphModule, images: Tensor, watched: Container[fx.Node]
) -> tuple[list[tuple[fx.Node, Tensor, Tensor]], Tensor]:
    """Run the graph; gives the watched nodes, each with its input and its output, and the graph's output."""
    interpreter = fx.Interpreter(module)
    interpreter.args_iter = iter([images])
    found = []
    for node in module.graph.nodes:
        value = interpreter.env[node] = interpreter.run_node(node)
        if node in watched:
            found.append((node, interpreter.env[node.args[0]].detach(), value))
    return found, value


def _layer(module: fx.GraphModule, node: fx.Node) -> Layer | None:
    if node.op == "call_function" and node.target in LAYERS and node.args[1].op == "get_attr":
        name = node.args[1].target
        owner, _, last = name.rpartition(".")
        weight = getattr(module.get_submodule(owner), last)
        rest = [_value(module, one) for one in node.args[2:]]
        axis = -1 if node.target is torch.ops.aten.linear.default else 1
        return Layer(owner or name, node, weight, axis, lambda x, w: node.target(x, w, *rest))
    if node.op != "call_module":
        return None
    outer = module.get_submodule(node.target)
    inner = _INNER.get(type(outer), "")
    holder = outer.get_submodule(inner)
    if not isinstance(holder, (*CONV_MODULES.values(), nn.Linear)):
        return None
    key = f"{inner}.weight" if inner else "weight"
    axis = -1 if type(outer) is nn.Linear else 1
    return Layer(
        f"{node.target}.{inner}".strip("."),
        node,
        holder.weight,
        axis,
        lambda x, w: torch.func.functional_call(outer, {key: w}, (x,)),
    )


def _value(module: fx.GraphModule, one: object) -> object:
    if isinstance(one, fx.Node):
        owner, _, last = one.target.rpartition(".")
        return getattr(module.get_submodule(owner), last)
    return one
