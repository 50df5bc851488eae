"""Layers that a network calls several times, such as the branches of a siamese one or a detector's head at each scale.

Each call is int8; the weight is rounded and stored once.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.fx import GraphModule

_SHARES = "the node of a weight that layers share"


def give_biases(module: "GraphModule") -> None:
    """Give each call of a layer a bias of its own, in place: int8 holds it in steps of that call's input."""
    import torch

    from repnets.fusion.graph import tensor_at
    from repnets.quantization.simulation import LAYERS

    for layer in module.graph.nodes:
        bias = layer.args[2] if layer.target in LAYERS and len(layer.args) > 2 else None
        if bias is None or bias.op != "get_attr" or len(bias.users) == 1:
            continue
        name = f"bias_of_{layer.name}"
        module.register_parameter(name, torch.nn.Parameter(tensor_at(module, bias.target).detach().clone()))
        with module.graph.inserting_before(layer):
            own = module.graph.get_attr(name)
        own.meta["val"] = bias.meta["val"]
        layer.update_arg(2, own)
    module.recompile()


def part_weights(module: "GraphModule") -> None:
    """Let each call read a node of its own of the weight, in place.

    The quantizer leaves a layer in float whose weight it has seen in another.
    """
    from repnets.quantization.simulation import LAYERS

    for layer in module.graph.nodes:
        weight = layer.args[1] if layer.target in LAYERS else None
        if weight is not None and weight.op == "get_attr" and len(weight.users) > 1:
            with module.graph.inserting_before(layer):
                own = module.graph.node_copy(weight)
            own.meta[_SHARES] = weight
            layer.update_arg(1, own)


def share_weights(module: "GraphModule") -> None:
    """Undo `part_weights`, also in what the quantizer has noted, in place: a weight is rounded once."""
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

    for own in list(module.graph.find_nodes(op="get_attr")):
        if (shared := own.meta.get(_SHARES)) is None:
            continue
        for layer in list(own.users):
            layer.replace_input_with(own, shared)
            noted = layer.meta.get(Q_ANNOTATION_KEY)
            if noted is not None and own in noted.input_qspec_map:
                noted.input_qspec_map[shared] = noted.input_qspec_map.pop(own)
        module.graph.erase_node(own)
