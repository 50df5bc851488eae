"""Operations on programs of torch.export: load a form, fix the input shape, count, round weights, cut after a layer."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from pipeline.artifacts.export_result import TensorFacts
from pipeline.artifacts.samples import cut
from pipeline.errors import InputError
from pipeline.models import checkpoints, program_file
from pipeline.models.passes.constants_ahead import compute_constants

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node


def of_form(form: str, checkpoint: Path, fused: Path, quantized: Path | None = None) -> "nn.Module":
    """One form of a network, in evaluation mode, for all batch and image sizes that it takes.

    Args:
        form: ``branched``, as trained; ``fused``; or ``quantized``: fused and in int8.
        checkpoint: artifacts/<model>/checkpoint.safetensors.
        fused: artifacts/<model>/fused.pt2.
        quantized: artifacts/<model>/quantized.pt2, for the form of that name.

    Raises:
        InputError: the file of that form is missing, or damaged.
    """
    if form == "branched":
        return checkpoints.load_model(checkpoint)[0]
    file = {"fused": fused, "quantized": quantized}[form]
    if file is None:
        raise InputError("int8 files are made of quantized.pt2, but none was given; name it with --quantized.")
    return as_module(program_file.read(file)[0])


def as_module(program: "ExportedProgram") -> "GraphModule":
    """The network of a program as a module in evaluation mode; it raises for sizes that the program does not take."""
    network = program.module()
    for one in network.modules():
        one.training = False  # modules of programs refuse `eval()`
    return network


def graph_module(program: "ExportedProgram") -> "GraphModule":
    """The network of a program as a graph to read, or to rewrite and capture again: without checks of input sizes."""
    from repnets.fusion import sizes

    return sizes.graph_module(program)


def narrow(program: "ExportedProgram", source: "ExportedProgram") -> None:
    """Let a program take no more sizes than the one whose `graph_module` it was made of, in place."""
    from repnets.fusion import sizes

    sizes.narrow_sizes(program, sizes.free_sizes(source))


def static(module: "nn.Module", *shapes: tuple[int, ...]) -> "ExportedProgram":
    """A network as a program of fixed input shapes, as exporters take it; what it computes of weights alone is stored.

    Args:
        module: float32, in evaluation mode.
        shapes: of each input, (N, 3, H, W) of an image.
    """
    import torch

    inputs = tuple(map(torch.zeros, shapes))
    program = torch.export.export(module, inputs)
    network = as_module(program)
    return torch.export.export(network, inputs) if compute_constants(network) else program


def input_shapes(program: "ExportedProgram") -> list[tuple[int | None, ...]]:
    """Shape of each input of a program; None for axes of free size."""
    values = {node.name: node.meta["val"] for node in program.graph.find_nodes(op="placeholder")}
    return [shape_of(values[name]) for name in program.graph_signature.user_inputs]


def outputs(program: "ExportedProgram") -> "dict[str, Tensor]":
    """What a program gives, by name, as tensors without content; see `repnets.outputs.named`."""
    from torch.utils import _pytree as pytree

    from repnets.outputs import named

    values = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    given = [values[name] for name in program.graph_signature.user_outputs]
    return named(pytree.tree_unflatten(given, program.call_spec.out_spec))


def count(program: "ExportedProgram") -> dict[str, int]:
    """Operations of a program by type; ``convolution``, ``batch_norm``, ``join``, ``int8``, ``total``.

    ``join`` counts additions of two values that depend on the input; ``int8`` the convolutions and linear layers that
    read int8 and weights of int8, and whose result, an activation after it or not, is made int8 again.
    """
    import torch

    operations = Counter(
        str(node.target).removesuffix(".default")
        for part in program.graph_module.modules()
        if isinstance(part, torch.fx.GraphModule)
        for node in part.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload) and "assert" not in str(node.target)
    )
    return {
        "convolution": sum(number for name, number in operations.items() if name.startswith("aten.conv")),
        "batch_norm": sum(number for name, number in operations.items() if "batch_norm" in name),
        "join": _joins(program),
        "int8": sum(map(_is_int8, program.graph.nodes)),
        "total": operations.total(),
        **dict(sorted(operations.items())),
    }


def count_normalizations(program: "ExportedProgram") -> int:
    """How many operations of a program a runtime may write as a batch norm.

    These are batch, group, instance and layer norms, and products of a value that depends on the input with a
    constant, such as a scale of each channel.
    """
    import torch

    aten = torch.ops.aten
    computed, found = _inputs(program), 0
    for node in program.graph.nodes:
        depending = computed.intersection(node.all_input_nodes)
        is_scale = node.target in (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar)
        found += bool(depending) and ("_norm" in str(node.target) or (is_scale and len(depending) == 1))
        if depending:
            computed.add(node)
    return found


def outputs_of(module: "GraphModule", image: "np.ndarray") -> "dict[str, np.ndarray]":
    """The output of each operation of a network for a batch of samples, by the name of its node, in order.

    Args:
        module: with the shapes of its inputs noted.
        image: float32 (N, 3, H, W), or for several inputs (N, numbers).

    Returns:
        float32 arrays; operations without a floating-point output are left out.
    """
    import torch

    interpreter = torch.fx.Interpreter(module, garbage_collect_values=False)
    taken = [node.meta["val"].shape for node in module.graph.find_nodes(op="placeholder")]
    interpreter.args_iter = iter(cut(torch.from_numpy(image), taken))
    outputs = {}
    with torch.inference_mode():
        for node in module.graph.nodes:
            value = interpreter.env[node] = interpreter.run_node(node)
            if node.op == "call_function" and isinstance(value, torch.Tensor) and value.is_floating_point():
                outputs[node.name] = value.float().numpy().copy()  # the next operation may work in place
    return outputs


def with_rounded_weights(
    module: "GraphModule",
    precision: str,
    stored: "Mapping[str, np.ndarray]" = MappingProxyType({}),
    *,
    of_layers_alone: bool = False,
) -> "GraphModule":
    """A copy of a network whose weights are as a file of this precision stores them, and which computes in float32.

    Of a quantized program these are the scales, and what is not int8.

    Args:
        module: float32.
        precision: ``fp16`` rounds all that are not `stored`; others round nothing.
        stored: by the parameter's name, float32 weights to take instead; the rest is then float16 at any precision.
        of_layers_alone: round no parameter of other operations than convolutions and linear layers.
    """
    import copy

    import torch

    rounded = copy.deepcopy(module)
    kept = weights_beside_layers(module) if of_layers_alone else set()
    if precision == "fp16" or stored:
        with torch.no_grad():
            for name, tensor in constants(rounded):
                if name in stored:
                    tensor.copy_(torch.from_numpy(stored[name]))
                elif tensor.is_floating_point() and name not in kept:
                    tensor.copy_(tensor.half().float())
        for node in rounded.graph.nodes:
            if "quantize_per_tensor" in str(node.target):
                value, scale, *rest = node.args
                node.args = (value, float(torch.tensor(scale).half()), *rest)
        rounded.recompile()
    return rounded


def with_rounded_numbers(module: "GraphModule") -> "GraphModule":
    """A copy of a network whose numbers that are no tensors are rounded to half precision; it computes as before.

    A division by a number becomes a product with its reciprocal, as converters write it.
    """
    import copy

    import torch

    aten = torch.ops.aten
    rounded = copy.deepcopy(module)
    for node in rounded.graph.nodes:
        if node.target is aten.div.Tensor and _is_divisor(node.args[1]):
            node.target, node.args = aten.mul.Tensor, (node.args[0], 1 / node.args[1])
        node.args = tuple(_half(one) for one in node.args)
        node.kwargs = {name: _half(one) for name, one in node.kwargs.items()}
    rounded.recompile()
    return rounded


def with_neighbours(module: "GraphModule", steps: int) -> "GraphModule":
    """A copy of a network that makes integers of a neighbour of each value, some float32 numbers away.

    What lies in the middle between two integers becomes the other one. Where an operation gives whole multiples of half
    a scale, that is many a value: after a PReLU of slope 0.25 one in ten.

    Args:
        steps: how many numbers away from zero; negative ones go towards zero.
    """
    import copy

    import torch

    moved = copy.deepcopy(module)
    for node in list(moved.graph.nodes):
        if "quantized_decomposed.quantize_per_tensor" in str(node.target):
            value, *rest = node.args
            with moved.graph.inserting_before(node):
                neighbour = moved.graph.call_function(torch.ops.aten.mul.Tensor, (value, 1 + steps * 2**-23))
            node.args = (neighbour, *rest)
    moved.recompile()
    return moved


def _half(argument: object) -> object:
    import torch

    return float(torch.tensor(argument).half()) if isinstance(argument, float) else argument


def _is_divisor(argument: object) -> bool:
    return isinstance(argument, int | float) and argument != 0


def layers(module: "GraphModule") -> "list[Node]":
    """The nodes of a program that compute a floating-point tensor from its input, in order of execution."""
    import torch

    return [
        node
        for node in module.graph.nodes
        if node.op == "call_function"
        and isinstance(value := node.meta.get("val"), torch.Tensor)
        and value.is_floating_point()
    ]


def weighted_layers(module: "GraphModule") -> dict[str, str]:
    """The convolutions and linear layers of a program by name, and the weights' names that they multiply with."""
    return {
        node.name: str(node.args[1].target)
        for node in module.graph.nodes
        if _is_layer(node) and node.args[1].op == "get_attr"
    }


def weights_beside_layers(module: "GraphModule") -> set[str]:
    """Names of what operations other than convolutions and linear layers read, and no scale: the slopes of a PReLU."""
    others = (node for node in module.graph.nodes if not (_is_layer(node) or "quantize" in str(node.target)))
    return {name for node in others for name in weights_of(node)}


def _is_layer(node: "Node") -> bool:
    return str(node.target).startswith(("aten.conv", "aten.linear"))


def weights_of(node: "Node") -> list[str]:
    """Names of the parameters and buffers that a node reads: ``stage1.weight``."""
    return [str(one.target) for one in node.all_input_nodes if one.op == "get_attr"]


def title(module: "GraphModule", layer: str) -> str:
    """A node's name as a reader knows the layer: ``conv2d_1 (stage2)``, by the weights that it reads."""
    node = next((node for node in module.graph.nodes if node.name == layer), None)
    owners = _owners(node) if node else []
    return f"{layer} ({', '.join(owners)})" if any(owners) else layer


def reader(module: "GraphModule", name: str) -> str:
    """A parameter or buffer as a reader knows it: by its name, and where that is a quantizer's, by who reads it."""
    node = next((one for one in module.graph.nodes if one.op == "get_attr" and one.target == name), None)
    if "." in name or node is None or not node.users:
        return name
    return f"{name} of {title(module, next(iter(node.users)).name)}"


def _owners(node: "Node") -> list[str]:
    """The modules whose weights a node reads.

    Of a weight's dequantize, those of the layer that it is for; of an activation's, those of the layer that it is from.
    """
    owners = list(dict.fromkeys(name.rpartition(".")[0] for name in weights_of(node)))
    if any(owners) or "quantize_per" not in str(node.target):
        return owners
    if "per_channel" in str(node.target):
        return _owners(next(iter(node.users)))
    while not weights_of(node) and len(node.all_input_nodes) == 1:
        (node,) = node.all_input_nodes
    return list(dict.fromkeys(name.rpartition(".")[0] for name in weights_of(node)))


def rounded_constants(module: "GraphModule") -> list[str]:
    """Names of the operations with a number that a float16 file rounds, and that is no layer's: ``gelu``, ``mul_1``.

    Some exporters write GELU, hard sigmoid and hard swish by their formulas, with the square root of 2 or 1/6 in
    float16; others have an operation for them. They write a division by 6 as a product with 1/6. Some round the slopes
    of a PReLU, others do not.
    """
    formulas = ("aten.gelu", "aten.hardsigmoid", "aten.hardswish", "aten.elu")
    kinds = dict(constants(module))

    def is_rounded(node: "Node") -> bool:
        numbers = [one for one in (*node.args, *node.kwargs.values()) if isinstance(one, float)]
        if str(node.target) == "aten.div.Tensor" and _is_divisor(node.args[1]):
            numbers = [1 / node.args[1]]
        own = () if _is_layer(node) else weights_of(node)
        return (
            str(node.target).startswith(formulas)
            or any(_half(one) != one for one in numbers)
            or any(kinds[name].is_floating_point() for name in own)
        )

    return [node.name for node in module.graph.nodes if node.op == "call_function" and is_rounded(node)]


def cut_after(module: "GraphModule", layer: "Node") -> "GraphModule":
    """The program up to a node, whose output it then gives. The module is left as it is."""
    import copy

    from torch.fx import GraphModule
    from torch.fx.graph import CodeGen

    graph = copy.deepcopy(module.graph)
    last = next(node for node in graph.nodes if node.name == layer.name)
    output = graph.output_node()
    output.args = (last,)
    graph.set_codegen(CodeGen())  # of one output, however the network nests its own
    for node in reversed(list(graph.nodes)):
        if node is not output and node is not last and not node.users and node.op != "placeholder":
            graph.erase_node(node)
    cut = GraphModule(module, graph)
    cut.eval()
    return cut


def constants(module: "GraphModule") -> "Iterator[tuple[str, Tensor]]":
    """Parameters and buffers by name."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def _inputs(program: "ExportedProgram") -> "set[Node]":
    names = program.graph_signature.user_inputs
    return {node for node in program.graph.find_nodes(op="placeholder") if node.name in names}


def _joins(program: "ExportedProgram") -> int:
    computed, joins = _inputs(program), 0
    for node in program.graph.nodes:
        depending = computed.intersection(node.all_input_nodes)
        joins += str(node.target).startswith(("aten.add.", "aten.add_.")) and len(depending) > 1
        if depending:
            computed.add(node)
    return joins


def _is_int8(node: "Node") -> bool:
    if not str(node.target).startswith(("aten.conv", "aten.linear")):
        return False
    read = [str(one.target) for one in node.args[:2]]
    after = [*node.users, *(user for one in node.users for user in one.users)]
    return all("dequantize_per" in one for one in read) and any(".quantize_per" in str(one.target) for one in after)


def output_facts(program: "ExportedProgram", has_classes: bool) -> tuple[TensorFacts, ...]:
    """What a program of static shape gives, as an exported file calls it: ``logits`` of a classifier, else ``output``
    for a tensor alone, and for several their own names."""
    alone = "logits" if has_classes else "output"
    return tuple(
        TensorFacts(name or alone, tuple(value.shape), str(value.dtype).removeprefix("torch."))
        for name, value in outputs(program).items()
    )


def shape_of(value: "Tensor") -> tuple[int | None, ...]:
    """Shape of a value of a program; None for axes of free size."""
    return tuple(size if isinstance(size, int) else None for size in value.shape)
