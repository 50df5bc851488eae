"""The error of int8 in each layer of a fused network alone: in its weight, in its input, and from them in the logits.

Values are rounded to symmetric int8, q * scale with q from -127 to 127: one scale for each output channel of a weight,
and one for an activation (arXiv 1806.08342).

The layers are not quantized one after the other. To first order, an error in a layer's output changes the logits by its
product with their gradient. The gradient of the logits, summed with random signs, gives the sum of squares of the
errors of all logits, when it is squared and averaged. So two forward passes and a few backward ones measure all layers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from repnets.errors import RepnetsError
from repnets.fusion.fused_layers import CONV_MODULES, BorderConv, PooledLinear
from repnets.fusion.graph import LAYERS, TRANSPOSED, tensor_at
from repnets.quantization.simulation import LIMIT, rounded

_DRAWS = 4  # of random signs
_SEED = 0
_HOLDERS = {BorderConv: "conv", PooledLinear: "linear"}  # where such a layer has its weight


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution or linear layer of a fused network.

    Attributes:
        name: Qualified name of the module that holds its weight.
        node: Its call.
        weight: (out, in // groups, *kernel size).
        axis: Of the channels of its input and output: 1, or -1 for a linear layer.
        call: Its output for an input and a weight.
    """

    name: str
    node: fx.Node
    weight: Tensor
    axis: int
    call: Callable[[Tensor, Tensor], Tensor]


@dataclass
class LayerError:
    """The error of int8 in one layer; powers are sums of squares over all images.

    Attributes:
        largest: Largest absolute value of each channel of its input, (in,).
        input_power: Power of its input.
        input_noise: Power of the rounding error of its input.
        from_weight: Power of the error in the logits from rounding its weight.
        from_input: The same from rounding its input.
        from_both: The same from rounding both, which may be less than the sum.
        by_channel: `from_weight` if each output channel alone were rounded, float64 (out,).
    """

    largest: Tensor
    by_channel: Tensor
    input_power: float = 0.0
    input_noise: float = 0.0
    from_weight: float = 0.0
    from_input: float = 0.0
    from_both: float = 0.0


def rounded_to(x: Tensor, largest: Tensor) -> Tensor:
    """A tensor rounded to int8, where 127 stands for `largest`, which broadcasts."""
    return rounded(x, (largest / LIMIT).clamp_min(torch.finfo(x.dtype).tiny))


def rounded_weight(weight: Tensor, *, per_tensor: bool = False) -> Tensor:
    """A weight rounded to int8, with a scale for each output channel, or one for all of them."""
    size = weight.abs()
    return rounded_to(weight, size.max() if per_tensor else size.amax(tuple(range(1, weight.dim())), keepdim=True))


def layers_of(module: fx.GraphModule) -> list[Layer]:
    """The calls of convolutions and linear layers of a fused network, in order; those of a shared one have one name."""
    return [layer for node in module.graph.nodes if (layer := _layer(module, node)) is not None]


def measure(
    module: fx.GraphModule, layers: Sequence[Layer], batches: Sequence[Tensor]
) -> tuple[dict[str, LayerError], Tensor]:
    """Run images through a fused network, and measure the error of int8 in each layer while all others stay float.

    Args:
        module: The network; it is not changed.
        layers: From `layers_of`.
        batches: Images, each (N, C, *spatial).

    Returns:
        The error of each layer, by name; and the logits, float64 (N, logits).

    Raises:
        RepnetsError: There is no image, no output of the network is differentiable by its input, PyTorch cannot
            differentiate one of its operations, or its logits are not finite or all the same.
    """
    if not sum(map(len, batches)):
        raise RepnetsError("no image was given")
    by_node = {layer.node: layer for layer in layers}
    found: dict[str, LayerError] = {}
    with torch.no_grad():
        for images in batches:
            for layer, x, _ in _run(module, images, by_node)[0]:
                largest = x.abs().transpose(0, layer.axis).flatten(1).amax(1)
                one = found.setdefault(
                    layer.name, LayerError(largest, torch.zeros(len(layer.weight), dtype=torch.float64))
                )
                one.largest = torch.maximum(one.largest, largest)
    weights = {layer.name: rounded_weight(layer.weight.detach()) for layer in layers}
    generator = torch.Generator().manual_seed(_SEED)
    logits = []
    for images in batches:
        try:
            calls, output = _run(module, images.detach().clone().requires_grad_(), by_node)
            gradients = _gradients(output, [y for _, _, y in calls], generator)
        except RuntimeError as error:
            raise RepnetsError(f"PyTorch has no gradient of the network: {str(error).splitlines()[0]}") from error
        logits.append(output.detach().double())
        with torch.no_grad():
            for place, (layer, x, y) in enumerate(calls):
                _add(found[layer.name], layer, weights[layer.name], x, y, [draw[place] for draw in gradients])
    together = torch.cat(logits)
    if not together.isfinite().all() or (together == together[0, 0]).all():
        raise RepnetsError(f"the logits are {'all the same' if together.isfinite().all() else 'not finite'}")
    return found, together


def _gradients(output: Tensor, values: list[Tensor], generator: torch.Generator) -> list[tuple[Tensor, ...]]:
    """Gradients by the values of the logits, summed with random signs: several draws."""
    signs = [torch.randint(0, 2, output.shape, generator=generator) * 2 - 1 for _ in range(_DRAWS)]
    return [
        torch.autograd.grad((output * one).sum(), values, retain_graph=True, allow_unused=True, materialize_grads=True)
        for one in signs
    ]


def _add(one: LayerError, layer: Layer, weight: Tensor, x: Tensor, y: Tensor, gradients: list[Tensor]) -> None:
    noise = rounded_to(x, one.largest.max()) - x
    one.input_power += _power(x)
    one.input_noise += _power(noise)
    by_weight, by_input = layer.call(x, weight) - y, layer.call(x + noise, layer.weight) - y
    for gradient in gradients:
        weighted = (gradient * by_weight).movedim(layer.axis, 1).flatten(2) if y.dim() > 2 else (gradient * by_weight)
        channels = weighted.sum(2) if weighted.dim() > 2 else weighted
        from_weight, from_input = channels.sum(1), (gradient * by_input).flatten(1).sum(1)
        one.by_channel += channels.double().square().sum(0) / len(gradients)
        one.from_weight += _power(from_weight) / len(gradients)
        one.from_input += _power(from_input) / len(gradients)
        one.from_both += _power(from_weight + from_input) / len(gradients)


def _power(x: Tensor) -> float:
    return float(x.double().square().sum())


def _run(
    module: fx.GraphModule, images: Tensor, layers: Mapping[fx.Node, Layer]
) -> tuple[list[tuple[Layer, Tensor, Tensor]], Tensor]:
    """Each layer with its input and its output; and all outputs of the network as one tensor (N, logits)."""
    interpreter = fx.Interpreter(module)
    interpreter.args_iter = iter([images])
    calls = []
    for node in module.graph.nodes:
        value = interpreter.env[node] = _value_of(node, interpreter)
        if node in layers:
            calls.append((layers[node], interpreter.env[node.args[0]].detach(), value))
    outputs = [one for one in pytree.tree_leaves(value) if isinstance(one, Tensor) and one.is_floating_point()]
    if not outputs or (images.requires_grad and not any(one.requires_grad for one in outputs)):
        raise RepnetsError("nothing that the network gives depends smoothly on its input")
    return calls, torch.cat([one.flatten(1) for one in outputs], 1)


def _value_of(node: fx.Node, interpreter: fx.Interpreter) -> object:
    """What a node gives, differentiable also where a write in place has left an `aten.copy`, which has no gradient."""
    if node.target is not torch.ops.aten.copy.default:
        return interpreter.run_node(node)
    target, source = (interpreter.env[one] for one in node.args[:2])
    return source.to(target.dtype).expand_as(target)


def _layer(module: fx.GraphModule, node: fx.Node) -> Layer | None:
    if node.op == "call_function" and node.target in LAYERS - TRANSPOSED and node.args[1].op == "get_attr":
        name, rest = str(node.args[1].target), [_value(module, one) for one in node.args[2:]]
        axis = -1 if node.target is torch.ops.aten.linear.default else 1
        owner = name.rpartition(".")[0] or name
        return Layer(owner, node, _value(module, node.args[1]), axis, lambda x, w: node.target(x, w, *rest))
    outer = module.get_submodule(str(node.target)) if node.op == "call_module" else None
    holder = _HOLDERS.get(type(outer))
    inner = getattr(outer, holder) if holder else outer
    if not isinstance(inner, (*CONV_MODULES.values(), nn.Linear)):
        return None
    path, key = (f"{node.target}.{holder}", f"{holder}.weight") if holder else (str(node.target), "weight")
    axis = -1 if outer is inner and isinstance(inner, nn.Linear) else 1
    return Layer(path, node, inner.weight, axis, lambda x, w: torch.func.functional_call(outer, {key: w}, (x,)))


def _value(module: fx.GraphModule, one: object) -> object:
    """The value of a call's argument: a parameter or buffer of the module, or itself."""
    return tensor_at(module, str(one.target)) if isinstance(one, fx.Node) else one
