"""Networks of several inputs as the stages call them, with a batch of samples; see `pipeline.artifacts.samples`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.artifacts.manifest import Preprocessing
from pipeline.artifacts.samples import InputShape, cut

if TYPE_CHECKING:
    from torch import nn
    from torch.fx import Graph, GraphModule, Node


def of_samples(network: "nn.Module", how: Preprocessing) -> "nn.Module":
    """A network as a module that is called with a batch of samples; one of one image is given back as it is.

    Args:
        network: in evaluation mode.
        how: says which inputs it takes.
    """
    if how.inputs is None:
        return network
    from torch import Tensor, nn

    class OfSamples(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, samples: Tensor) -> Any:
            return self.network(*cut(samples, how.shapes(len(samples))))

    made = OfSamples()
    made.training = network.training  # modules of programs refuse `eval()`
    return made


def join_inputs(module: "GraphModule", inputs: Sequence[InputShape]) -> "GraphModule":
    """A graph of several inputs as one that takes a batch of samples and cuts it itself, in place.

    So it can be quantized by what works with graphs of one input. `part_inputs` is the way back.
    """
    import torch

    aten, graph = torch.ops.aten, module.graph
    taken = graph.find_nodes(op="placeholder")
    with graph.inserting_before(taken[0]):
        samples = graph.placeholder("samples")
    known = [one.meta.get("val") for one in taken]
    if all(one is not None for one in known):
        samples.meta["val"] = known[0].new_empty((known[0].shape[0], sum(one.numbers for one in inputs)))
    begin = 0
    for node, one in zip(taken, inputs, strict=True):
        end = begin + one.numbers
        with graph.inserting_before(node):
            part = _called(graph, aten.slice.Tensor, samples, 1, begin, end)
            part = _called(graph, aten.view.default, part, [-1, *one.shape])
            whole = _called(graph, aten.clone.default, part)
        begin = end
        if "val" in node.meta:
            whole.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(whole)
        graph.erase_node(node)
    graph.set_codegen(_codegen(["samples"], graph))
    module.recompile()
    return module


def part_inputs(module: "GraphModule", inputs: Sequence[InputShape]) -> "GraphModule":
    """A graph from `join_inputs` as one of several inputs again, in place."""
    graph = module.graph
    (samples,) = graph.find_nodes(op="placeholder")
    parts = sorted(samples.users, key=lambda part: part.args[2])
    names = [one.name for one in inputs]
    for part, name in zip(parts, names, strict=True):
        (view,) = part.users
        (whole,) = view.users
        with graph.inserting_before(samples):
            taken = graph.placeholder(name)
        taken.meta = dict(whole.meta)
        whole.replace_all_uses_with(taken)
        for node in (whole, view, part):
            graph.erase_node(node)
    graph.erase_node(samples)
    graph.set_codegen(_codegen(names, graph))
    module.recompile()
    return module


def _called(graph: "Graph", target: Any, source: "Node", *rest: Any) -> "Node":
    node = graph.call_function(target, (source, *rest))
    if "val" in source.meta:
        node.meta["val"] = target(source.meta["val"], *rest)
    return node


def _codegen(names: Sequence[str], graph: "Graph") -> Any:
    """Of a forward of such parameters, whose outputs are nested as they were."""
    from torch.fx.graph import CodeGen, _PyTreeCodeGen, _PyTreeInfo
    from torch.utils import _pytree as pytree

    if not isinstance(graph._codegen, _PyTreeCodeGen):
        return CodeGen()
    spec = pytree.tree_flatten((tuple(names), {}))[1]
    return _PyTreeCodeGen(_PyTreeInfo(list(names), spec, graph._codegen.pytree_info.out_spec))
