"""A fused program in int8, by torchao's PT2E: which tensors, and the program that holds them.

One symmetric scheme serves every target: int8 from -127 to 127, weights with a scale for each output channel,
activations with one scale; TensorRT takes no other. Which operations get int8 inputs and outputs is what XNNPACK's
quantizer says, so that ExecuTorch computes them as integers; Core ML and TensorRT take the same.
"""

import copy
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.artifacts.samples import InputShape
from pipeline.models import programs, several_inputs
from pipeline.models.passes.conv_paddings import number_paddings
from pipeline.models.passes.keep_mean_dims import keep_dimensions_in
from pipeline.quantization import shared_layers
from pipeline.quiet import quiet

# what moves numbers about and computes none, and what the capture asserts
_MOVES = tuple(
    f"aten.{name}."
    for name in (
        *("view", "reshape", "flatten", "unflatten", "transpose", "permute", "squeeze", "unsqueeze", "expand"),
        *("chunk", "split", "split_with_sizes", "slice", "select", "cat", "clone", "contiguous", "dropout", "sym_size"),
        *("_assert_scalar", "_assert_async", "_assert_tensor_metadata"),
    )
)

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node

    from repnets.quantization.simulation import Simulation


def network(program: "ExportedProgram", inputs: Sequence[InputShape] | None = None) -> "GraphModule":
    """A fused program's network, ready to be quantized: a private copy, whose global means keep their dimensions.

    XNNPACK computes a mean over height and width as integers only where its output keeps them, and flattened after.
    One of several `inputs` takes them as samples; see `several_inputs.join_inputs`.
    """
    import torch

    module = copy.deepcopy(programs.graph_module(program))
    if inputs is not None:
        several_inputs.join_inputs(module, inputs)
    number_paddings(module)
    shared_layers.give_biases(module)
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten.copy.default):
        target, source = node.args[:2]  # left by a write in place; it has no gradient to train with
        if target.meta["val"].dtype == source.meta["val"].dtype:
            node.target, node.args, node.kwargs = torch.ops.aten.expand_as.default, (source, target), {}
    _give_numbers_a_dimension(module)
    keep_dimensions_in(module, lambda mean, _: (torch.ops.aten.flatten.using_ints, (mean, 1)))
    return module


def _give_numbers_a_dimension(module: "GraphModule") -> None:
    """Make parameters of no dimension that maps are multiplied with, or added to, ones of one dimension, in place.

    TensorRT takes no int8 constant of no dimension.
    """
    import torch

    from repnets.fusion.graph import tensor_at

    aten = torch.ops.aten
    for node in module.graph.find_nodes(op="get_attr"):
        value = node.meta.get("val")
        broadcasts = all(
            user.target in (aten.add.Tensor, aten.mul.Tensor) and user.meta["val"].dim() for user in node.users
        )
        if isinstance(value, torch.Tensor) and value.dim() == 0 and broadcasts:
            tensor = tensor_at(module, node.target)
            tensor.data = tensor.data.reshape(1)
            node.meta["val"] = value.reshape(1)


def prepare(module: "GraphModule", in_float: Container[str] = ()) -> "GraphModule":
    """A copy of a network in which torchao's observers stand where a tensor will be int8.

    Args:
        module: from `network`.
        in_float: names of the nodes of convolutions and linear layers that are to stay in float32.
    """
    with quiet():
        import torch
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer
        from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e
        from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, SharedQuantizationSpec
        from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

        prepared = copy.deepcopy(module)
        config = _config()
        of_transposed = replace(config.weight, ch_axis=1)
        left = {node for node in prepared.graph.nodes if node.name in in_float or not _can_be_int8(node)}
        for node in left:
            if node.op == "call_function":
                node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(_annotated=True)  # no annotator touches it
        for node in _averages(prepared, left):
            # a range of its own: an average's is narrower than that of what it averages
            reads = {node.args[0]: config.input_activation}
            annotation = QuantizationAnnotation(reads, config.output_activation, _annotated=True)
            node.meta[Q_ANNOTATION_KEY] = annotation
        for pad in _pads(prepared, left):
            # zeros and copies are whole steps, so one range serves what comes and what goes
            shared = SharedQuantizationSpec((pad.args[0], pad))
            reads = {pad.args[0]: config.input_activation}
            pad.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(reads, shared, _annotated=True)
        for layer, clamp in _clamped(prepared):
            # rounded after the clamp alone: what it cuts off would take most digits of what it leaves
            if layer not in left:
                image, weight = layer.args[:2]
                is_transposed = layer.target is torch.ops.aten.conv_transpose2d.input
                of_weight = of_transposed if is_transposed else config.weight
                reads = {image: config.input_activation, weight: of_weight}
                layer.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(reads, None, _annotated=True)
                clamp.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation({}, config.output_activation, _annotated=True)
        quantizer = XNNPACKQuantizer().set_global(config).set_filter_function(lambda node: node not in left)
        # batch norms of training, which no fused program has; to look for them takes seconds
        quantizer.SUPPORTED_PATTERNS = [one for one in quantizer.SUPPORTED_PATTERNS if "_bn" not in one.name]
        quantizer.transform_for_annotation = partial(_ready_to_annotate, in_float=left)
        quantizer.validate = shared_layers.share_weights
        _hide_batch_norms(prepared)
        prepared = prepare_pt2e(prepared, quantizer)
    return _in_evaluation(prepared)


def simulation(prepared: "GraphModule") -> "Simulation":
    """What a prepared network will give in int8; its weights and scales can be changed there."""
    from repnets.quantization.simulation import Rounding, Simulation

    module = copy.deepcopy(prepared)
    observers = _observers(module)  # held, so that no two have the id of one
    for name, observer in observers:
        rounding = Rounding(observer.ch_axis if _is_per_channel(observer) else None, group=id(observer))
        rounding.enabled = True
        setattr(module, name, rounding)
    module.recompile()
    return Simulation(module)


def convert(
    prepared: "GraphModule", found: "Simulation", shape: Sequence[int], inputs: Sequence[InputShape] | None = None
) -> "ExportedProgram":
    """The int8 program: a prepared network with the weights and scales of its simulation.

    Args:
        prepared: from `prepare`; it is used up.
        found: from `simulation` of it; its biases are rounded to what integer runtimes hold.
        shape: (N, C, H, W) of an example, N being 2; batch size, height and width stay free where the network leaves
            them free.
        inputs: of a network of several, as `network` was given them.
    """
    with quiet():
        import torch
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

        from repnets.fusion.capture import capture
        from repnets.quantization.ranges import snap_biases
        from repnets.quantization.simulation import LIMIT

        snap_biases(found)

        copy_tensors(found.module, prepared)
        for name, observer in _observers(prepared):
            largest = getattr(found.module, name).scale * LIMIT
            largest = largest if _is_per_channel(observer) else largest.squeeze()
            observer.min_val, observer.max_val = -largest, largest
        converted = _in_evaluation(convert_pt2e(prepared))
        _drop_unread(converted)
        if inputs is None:
            return capture(converted, torch.zeros(*shape))
        several_inputs.part_inputs(converted, inputs)
        return capture(converted, tuple(torch.zeros(shape[0], *one.shape) for one in inputs))


def copy_tensors(source: "GraphModule", target: "GraphModule") -> None:
    """Copy the network's weights and other tensors from one form of it to another, in place."""
    import torch

    found = dict(source.named_parameters()) | dict(source.named_buffers())
    with torch.no_grad():
        for name, tensor in [*target.named_parameters(), *target.named_buffers()]:
            if name in found:
                tensor.copy_(found[name])


def in_float(prepared: "GraphModule") -> dict[str, int]:
    """Operations that compute in float32 in a prepared network, by type: those that the quantizer does not take."""
    import torch
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

    def is_int8(node: "Node") -> bool:
        found = node.meta.get(Q_ANNOTATION_KEY)
        return found is not None and bool(found.input_qspec_map or found.output_qspec)

    return dict(
        Counter(
            str(node.target).removesuffix(".default")
            for node in prepared.graph.nodes
            if isinstance(node.target, torch._ops.OpOverload)
            and not is_int8(node)
            and not str(node.target).startswith(_MOVES)
        )
    )


def _can_be_int8(node: "Node") -> bool:
    """Whether int8 has what an operation computes: a layer of stored weights, or float32 of the input without a factor.

    Of the layers that is what a `Simulation` knows. What the quantizer asks for beyond these it would make int8 by
    numbers that nobody has set.
    """
    import torch

    from repnets.fusion.graph import arguments
    from repnets.quantization.simulation import LAYERS

    if str(node.target).startswith(("aten.conv", "aten.linear.")):
        is_grouped = "transpose" in str(node.target) and arguments(node)["groups"] != 1  # XNNPACK has none in int8
        are_stored = all(one is None or one.op == "get_attr" for one in node.args[1:3])
        return node.target in LAYERS and are_stored and not is_grouped
    values = [one.meta.get("val") for one in (node, *node.all_input_nodes)]
    are_float = all(isinstance(one, torch.Tensor) and one.dtype is torch.float32 for one in values)
    return are_float and node.kwargs.get("alpha", 1) == 1


def _hide_batch_norms(module: "GraphModule") -> None:
    """Write each batch norm as torch's own function of the same arguments, in place.

    torchao folds a batch norm into the convolution before it, also where others read that convolution, and so changes
    what they get. A fused network has only batch norms that are to stay.
    """
    import torch

    for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default):
        node.target = torch.batch_norm


def _ready_to_annotate(module: "GraphModule", in_float: "Container[Node]") -> "GraphModule":
    """What a quantizer annotates: batch norms are back, and numbers are constants. In place."""
    import torch

    for node in module.graph.find_nodes(op="call_function", target=torch.batch_norm):
        node.target = torch.ops.aten.batch_norm.default
    shared_layers.part_weights(module)
    return _numbers_as_constants(module, in_float)


def _numbers_as_constants(module: "GraphModule", but_for: "Container[Node]") -> "GraphModule":
    """Write the numbers that int8 additions and products take as constants of one element, in place."""
    import torch

    aten = torch.ops.aten
    for node in list(module.graph.nodes):
        if node.target not in (aten.add.Tensor, aten.mul.Tensor) or node in but_for:
            continue
        for place, value in enumerate(node.args):
            if isinstance(value, (int, float)):
                name = f"number_of_{node.name}_{place}"
                number = torch.tensor([float(value)])
                module.register_buffer(name, number)
                with module.graph.inserting_before(node):
                    constant = module.graph.get_attr(name)
                constant.meta["val"] = node.meta["val"].fake_mode.from_tensor(number, static_shapes=True)
                node.update_arg(place, constant)
    module.recompile()
    return module


def _averages(module: "GraphModule", in_float: "Container[Node]") -> "list[Node]":
    """Means and adaptive average pools."""
    import torch

    aten = torch.ops.aten
    return [node for target in (aten.mean.dim, aten.adaptive_avg_pool2d.default)
            for node in module.graph.find_nodes(op="call_function", target=target) if node not in in_float]  # fmt: skip


def _pads(module: "GraphModule", in_float: "Container[Node]") -> "list[Node]":
    """Paddings by zeros, or by copies of the map, that int8 convolutions alone read."""
    import torch

    from repnets.fusion.graph import arguments, pads_zeros

    aten = torch.ops.aten
    return [
        node
        for node in module.graph.find_nodes(op="call_function", target=aten.pad.default)
        if (pads_zeros(node) or arguments(node)["mode"] != "constant")
        and all(user.target is aten.conv2d.default and user not in in_float for user in node.users)
    ]


def _clamped(module: "GraphModule") -> "list[tuple[Node, Node]]":
    """Convolutions and linear layers that a ReLU6 or another hard tanh alone reads, each with that."""
    import torch

    from repnets.quantization.simulation import LAYERS

    aten = torch.ops.aten
    clamps = [node for target in (aten.hardtanh.default, aten.hardtanh_.default, aten.relu6.default)
              for node in module.graph.find_nodes(op="call_function", target=target)]  # fmt: skip
    return [(node.args[0], node) for node in clamps if node.args[0].target in LAYERS and len(node.args[0].users) == 1]


def _config() -> Any:
    """XNNPACK's own per-channel scheme, made symmetric, and without its floor of 2^-12 under every scale.

    That floor takes the digits of any channel whose largest weight is below 0.03.
    """
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import get_symmetric_quantization_config
    from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantizer import QuantizationSpec

    tiny = 2.0**-126
    activation = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-127,
        quant_max=127,
        qscheme=torch.per_tensor_symmetric,
        observer_or_fake_quant_ctr=MinMaxObserver.with_args(eps=tiny),
    )
    config = get_symmetric_quantization_config(is_per_channel=True)
    weight = replace(config.weight, observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=tiny))
    return replace(config, input_activation=activation, output_activation=activation, weight=weight)


def _observers(module: "GraphModule") -> "list[tuple[str, torch.nn.Module]]":
    """Names and observers; one that several tensors share comes with each name."""
    from torchao.quantization.pt2e.observer import ObserverBase

    return [
        (str(node.target), one)
        for node in module.graph.nodes
        if node.op == "call_module" and isinstance(one := module.get_submodule(str(node.target)), ObserverBase)
    ]


def _drop_unread(module: "GraphModule") -> None:
    """Take out the float weights, which are there in int8 now."""
    read = {node.target for node in module.graph.find_nodes(op="get_attr")}
    for name in [name for name, _ in [*module.named_parameters(), *module.named_buffers()] if name not in read]:
        owner, _, last = name.rpartition(".")
        delattr(module.get_submodule(owner), last)


def _is_per_channel(observer: "torch.nn.Module") -> bool:
    import torch

    return observer.qscheme in (torch.per_channel_symmetric, torch.per_channel_affine)


def _in_evaluation(module: "GraphModule") -> "GraphModule":
    """The same module; PT2E's forbid `.eval()`."""
    for one in module.modules():
        one.training = False
    return module
