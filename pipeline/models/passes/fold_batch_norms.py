"""Fold batch norms into the convolution before them, for an exporter that does the same, but slowly."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.models.passes.rewriting import graph_of, program_of

if TYPE_CHECKING:
    import torch
    from torch.fx import Node


def fold_pairs(program: "torch.export.ExportedProgram") -> "torch.export.ExportedProgram":
    """The same network without the batch norms that follow a convolution and nothing else.

    XNNPACK's lowering folds each such pair itself, with the same function of torch, after it has passed over
    the whole graph many times. A network of many branches is mostly such pairs: folding them first halves the
    time, and leaves the operations and the weights of the file as they are, to the bit.

    Args:
        program: for inference, as `torch.export.export` gives it. It is left as it is.

    Returns:
        A new program, or the same where there is no such pair. No node is renamed; the batch norm's own bias
        becomes the convolution's. A pair is folded where both
        are plain 2d operations whose parameters nothing else uses, and it is not the network's output; others
        are left to the exporter.
    """
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    signature, state = program.graph_signature, dict(program.state_dict)
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    stored = {place: name for place, name in names.items() if name in state}
    if not any(_is_pair(node, stored) for node in program.graph.nodes):
        return program
    module = graph_of(program)
    unused = set()
    for norm in module.graph.nodes:
        if not _is_pair(norm, stored):
            continue
        convolution, scale, shift, mean, variance, _, _, epsilon, _ = norm.args
        weight, bias = _weight_and_bias(convolution)
        numbers = (None if node is None else state[stored[node.name]] for node in (weight, bias, mean, variance))
        folded = fuse_conv_bn_weights(*numbers, epsilon, state[stored[scale.name]], state[stored[shift.name]])
        for node, value in zip((weight, shift), folded, strict=True):
            state[stored[node.name]] = torch.nn.Parameter(value.detach(), requires_grad=False)
        convolution.args = (convolution.args[0], weight, shift, *convolution.args[3:])
        norm.replace_all_uses_with(convolution)
        module.graph.erase_node(norm)
        for node in filter(None, (scale, mean, variance, bias)):
            module.graph.erase_node(node)
            unused.add(node.name)
    gone = {stored[place] for place in unused}
    inputs = [one for one in signature.input_specs if getattr(one.arg, "name", None) not in unused]
    state = {name: value for name, value in state.items() if name not in gone}
    return program_of(module, program, replace(signature, input_specs=inputs), state)


def _is_pair(norm: "Node", stored: Mapping[str, str]) -> bool:
    """Whether a node is a batch norm in inference, alone behind a convolution, and all their numbers are stored."""
    import torch

    aten = torch.ops.aten
    if norm.target is not aten.batch_norm.default or norm.args[5] or any(user.op == "output" for user in norm.users):
        return False
    convolution = norm.args[0]
    if convolution.target is not aten.conv2d.default or len(convolution.users) != 1:
        return False
    weight, bias = _weight_and_bias(convolution)
    numbers = (weight, *norm.args[1:5], *([] if bias is None else [bias]))
    return all(node is not None and node.name in stored and len(node.users) == 1 for node in numbers)


def _weight_and_bias(convolution: "Node") -> "tuple[Node, Node | None]":
    weight, *rest = convolution.args[1:]
    return weight, rest[0] if rest else None
