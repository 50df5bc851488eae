"""Reading a captured graph: arguments by name, module paths, sizes at the example, and what it costs."""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from math import prod

import torch
from torch import Tensor, fx, nn

aten = torch.ops.aten

TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
CONVOLUTIONS = {
    aten.conv1d.default,
    aten.conv1d.padding,
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.conv3d.default,
    aten.conv3d.padding,
    *TRANSPOSED,
}
LAYERS = {*CONVOLUTIONS, aten.linear.default}
_PRODUCTS = {  # of two feature maps or matrices: the place of the first of them among the arguments
    aten.matmul.default: 0,
    aten.mm.default: 0,
    aten.bmm.default: 0,
    aten.mv.default: 0,
    aten.dot.default: 0,
    aten.addmm.default: 1,
    aten.baddbmm.default: 1,
}
BATCH_NORM = aten.batch_norm.default
ADDITIONS = {aten.add.Tensor, aten.add.Scalar}
VIEWS = {
    operator.getitem,
    *(
        overload
        for packet in (aten.slice, aten.view, aten.reshape, aten.flatten, aten.squeeze, aten.unsqueeze, aten.transpose)
        for overload in (getattr(packet, name) for name in packet.overloads())
    ),
}
GROUPINGS = (
    aten.view.default,
    aten.view_as.default,
    aten.reshape.default,
    aten.reshape_as.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
)
WHOLE = 2**31  # a slice that ends past this ends where its input does
SPLITS = {aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default}


def arguments(node: fx.Node) -> dict[str, object]:
    """All arguments of an ATen call by their names in the operator's schema, defaults filled in."""
    schema = node.target._schema.arguments
    bound = {a.name: a.default_value for a in schema if a.has_default_value()}
    bound.update(zip((a.name for a in schema), node.args, strict=False))
    bound.update(node.kwargs)
    return bound


def each_axis(value: object, rank: int) -> tuple[int, ...]:
    """A stride, padding or dilation as one number for each axis; ATen takes one number for all."""
    numbers = list(value) if isinstance(value, (list, tuple)) else [value]
    return tuple(numbers * rank if len(numbers) == 1 else numbers)


def zeros_around(padding: object, kernel: Sequence[int], dilation: Sequence[int]) -> tuple[tuple, tuple]:
    """The zeros that a convolution puts before and after each axis, whose padding may be "same" or "valid".

    Args:
        padding: As PyTorch has it; the odd zero of "same" comes last.
        kernel: Its size, a number for each axis.
        dilation: The same of its step.
    """
    if padding != "same":
        zeros = each_axis(0 if padding == "valid" else padding, len(kernel))
        return zeros, zeros
    totals = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
    return tuple(total // 2 for total in totals), tuple(total - total // 2 for total in totals)


def is_random(node: fx.Node) -> bool:
    """Whether a call draws random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def is_repeatable(node: fx.Node) -> bool:
    """Whether a call gives the same each time for the same arguments, and writes into none of them."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.target is operator.getitem
    return not is_random(node) and not node.target._schema.is_mutable


def module_path(node: fx.Node) -> str:
    """Qualified name of the module whose forward made `node`; empty for the root."""
    stack = node.meta.get("nn_module_stack")
    # a module that is called twice has "@1" on its path the second time
    return next(reversed(stack.values()))[0].split("@")[0] if stack else ""


def common_path(paths: list[str]) -> str:
    """The longest module path that holds all `paths`."""
    shared: list[str] = []
    for names in zip(*(path.split(".") for path in paths), strict=False):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    return ".".join(shared)


def sizes_at(graph: fx.Graph, input_shape: tuple[int, ...]) -> Callable[[int | torch.SymInt], int]:
    """A function of a size in the graph: the number it is for an input of `input_shape`."""
    inputs = next(node.meta["val"] for node in graph.nodes if node.op == "placeholder")
    sizes = {
        size.node.expr: actual
        for size, actual in zip(inputs.shape, input_shape, strict=True)
        if isinstance(size, torch.SymInt)
    }

    @cache
    def value_of(expression: object) -> int:
        return int(expression.subs(sizes))

    def size_of(size: int | torch.SymInt) -> int:
        return value_of(size.node.expr) if isinstance(size, torch.SymInt) else size

    return size_of


def node_shapes(graph: fx.Graph, example_shape: tuple[int, ...]) -> dict[fx.Node, tuple[int, ...]]:
    """The shape of every tensor in the graph for one input of `example_shape`."""
    size_of = sizes_at(graph, example_shape)
    return {
        node: tuple(size_of(size) for size in node.meta["val"].shape)
        for node in graph.nodes
        if isinstance(node.meta.get("val"), Tensor)
    }


def tensor_at(module: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of a qualified name, `head.linear.weight` say."""
    owner, _, last = name.rpartition(".")
    return getattr(module.get_submodule(owner), last)


def calls(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """The nodes that compute something: calls that make or take apart a tensor."""
    return [node for node in nodes if node.op == "call_function" and isinstance(node.meta.get("val"), Tensor)]


def multiply_accumulates(node: fx.Node, shapes: Mapping[fx.Node, tuple[int, ...]]) -> int:
    """MACs of a layer or a product of two feature maps at the sizes in `shapes`; 0 for every other node."""
    if node.target in LAYERS:
        # a transposed convolution does for each number that it reads what the others do for each that they make
        counted = node.args[0] if node.target in TRANSPOSED else node
        return prod(shapes[counted]) * prod(shapes[node.args[1]][1:])
    if node.target in _PRODUCTS:
        first = node.args[_PRODUCTS[node.target]]
        return prod(shapes[node]) * shapes[first][-1]
    if node.target is aten.scaled_dot_product_attention.default:
        query, key, value = (shapes[one] for one in node.args[:3])
        return prod(query[:-1]) * key[-2] * (key[-1] + value[-1])
    if node.target is aten.einsum.default:
        return _einsum_products(node.args[0], [shapes[one] for one in node.args[1]])
    return 0


def _einsum_products(equation: str, operands: Sequence[tuple[int, ...]]) -> int:
    """The products that a sum over two operands takes, one for each value of all its indices; 0 of one operand."""
    sizes: dict[str, int] = {}
    for term, shape in zip(equation.replace(" ", "").split("->")[0].split(","), operands, strict=True):
        before, dots, after = term.partition("...")
        others = tuple(f".{place}" for place in range(len(before) + len(after) - len(shape), 0)) if dots else ()
        for index, size in zip((*before, *others, *after), shape, strict=True):
            sizes[index] = max(size, sizes.get(index, 1))
    return prod(sizes.values()) if len(operands) > 1 else 0


def pads_zeros(node: fx.Node) -> bool:
    """Whether a node puts zeros around, as a convolution's own padding does."""
    if node.target is not aten.pad.default:
        return False
    named = arguments(node)
    return named["mode"] == "constant" and not named["value"]
