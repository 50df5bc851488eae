"""A runtime's profile of one inference, matched to the layers of the network.

TensorRT and Core ML name an operation by the program's node, `conv2d_1 + relu_1` say. ExecuTorch numbers its
operations. An exported file has its layers with weights in the order of the program, so the k-th of them is the
program's k-th. This is only used if their number and kinds agree.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artifacts.profile_result import Operation
from pipeline.models import program_file

WEIGHTED = ("convolution", "depthwise", "linear")


@dataclass(frozen=True)
class Profile:
    """The part of a `ProfileResult` that is measured."""

    inference_ms: float
    sum_ms: float
    named: bool
    operations: tuple[Operation, ...]


def named(operations: Sequence[Mapping[str, Any]], program: Path, inference_ms: float) -> Profile:
    """A profile whose operations have the names of the network's layers, where they can be told.

    Args:
        operations: in the order of execution, as a backend's `profile` gives them.
        program: the fused.pt2 or quantized.pt2 that the file came from.
        inference_ms: median latency of the same file on as many threads, without a profile.
    """
    layers = program_layers(program)
    weighted = [place for place, one in enumerate(operations) if one["kind"] in WEIGHTED]
    is_same = len(weighted) == len(layers) and all(
        _can_be(operations[place]["kind"], layer) for place, layer in zip(weighted, layers, strict=True)
    )
    found = dict(zip(weighted, layers, strict=True)) if is_same else _by_node(operations, layers)
    sum_ms = sum(one["ms"] for one in operations)
    return Profile(
        inference_ms,
        round(sum_ms, 6),
        bool(found),
        tuple(
            Operation(
                layer=found[place]["layer"] if place in found else None,
                weight=tuple(found[place]["weight"]) if place in found else None,
                **one,
                share=round(one["ms"] / sum_ms, 6) if sum_ms else 0.0,
            )
            for place, one in enumerate(operations)
        ),
    )


def program_layers(program: Path) -> list[dict[str, Any]]:
    """Convolutions and linear layers of a program in the order of its graph: node, layer, kind, shape of the weight.

    ``node`` is its name in the graph, ``layer`` the qualified name of the module that the weight belongs to.
    """
    read, _ = program_file.read(program)
    parameters = {**read.graph_signature.inputs_to_parameters, **read.graph_signature.inputs_to_buffers}
    layers = []
    for node in read.graph.nodes:
        name = str(node.target) if node.op == "call_function" else ""
        if not name.startswith(("aten.conv", "aten.linear", "aten.addmm")):
            continue
        # of a quantized layer, the weight is behind a dequantize, and bears no layer's name, as the bias does
        inputs = [one.args[0] if "dequantize" in str(one.target) else one for one in node.all_input_nodes]
        held = [parameters[one.name] for one in inputs if one.name in parameters]
        weight = max(held, key=lambda one: read.state_dict[one].dim(), default=None)
        if weight is None:
            continue
        shape = tuple(read.state_dict[weight].shape)
        named = next((one for one in held if "." in one), weight)
        layers.append(
            {
                "node": node.name,
                "layer": named.rpartition(".")[0],
                "kind": _kind(name, node, shape),
                "weight": list(shape),
            }
        )
    return layers


def _by_node(operations: Sequence[Mapping[str, Any]], layers: Sequence[Mapping[str, Any]]) -> dict[int, Any]:
    """The layer of each operation whose name holds that of the layer's node."""
    known = {layer["node"]: layer for layer in layers}
    found = {}
    for place, one in enumerate(operations):
        named = [known[word] for word in re.findall(r"\w+", one["name"]) if word in known]
        if named:
            found[place] = named[0]
    return found


def _can_be(kind: str, layer: Mapping[str, Any]) -> bool:
    """A runtime can take a convolution of single pixels for the product that it is, or a depthwise one for any."""
    if kind == "linear":
        return layer["kind"] == "linear" or (layer["kind"] == "convolution" and set(layer["weight"][2:]) == {1})
    return layer["kind"] == kind or (kind == "convolution" and layer["kind"] == "depthwise")


def _kind(name: str, node: Any, shape: Sequence[int]) -> str:
    if not name.startswith("aten.conv"):
        return "linear"
    groups = node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1)
    return "depthwise" if groups == shape[0] > 1 == shape[1] else "convolution"
