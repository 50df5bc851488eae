"""Rewrite padding in int8 so that XNNPACK computes it in integers."""

from typing import TYPE_CHECKING

from pipeline.models.passes.rewriting import graph_of, program_of

if TYPE_CHECKING:
    import torch
    from torch.fx import Node

# by name: torch has these operators only once something that quantizes was imported
_QUANTIZE = "quantized_decomposed.quantize_per_tensor.default"
_DEQUANTIZE = "quantized_decomposed.dequantize_per_tensor.default"


def round_before_pads(program: "torch.export.ExportedProgram") -> "torch.export.ExportedProgram":
    """The same network without the quantize and dequantize behind a padding by zeros that has the same in front.

    0 is a whole number of steps, so the second changes nothing. XNNPACK's lowering takes a padding between a dequantize
    and a convolution as integers, and computes it with that convolution; with a quantize behind it, it pads in float.

    Args:
        program: as `torch.export.export` gives it. It is left as it is.

    Returns:
        A new program, or the same where there is no such padding. No node is renamed.
    """
    if not any(map(_rounded_again, program.graph.nodes)):
        return program
    module = graph_of(program)
    for pad in list(module.graph.nodes):
        for quantize in _rounded_again(pad):
            for dequantize in list(quantize.users):
                dequantize.replace_all_uses_with(pad)
                module.graph.erase_node(dequantize)
            module.graph.erase_node(quantize)
    module.recompile()
    return program_of(module, program)


def _rounded_again(node: "Node") -> "list[Node]":
    """The quantizes behind a padding by zeros that repeat, with their dequantizes, what stands in front of it."""
    from repnets.fusion.graph import pads_zeros

    if not pads_zeros(node) or not _is(_DEQUANTIZE, before := node.args[0]):
        return []
    return [
        one
        for one in node.users
        if _is(_QUANTIZE, one, before) and all(_is(_DEQUANTIZE, user, before) for user in one.users)
    ]


def _is(name: str, node: "Node", like: "Node | None" = None) -> bool:
    """Whether a node calls an operator, with the scale and the limits of another node."""
    return str(node.target) == name and (like is None or node.args[1:] == like.args[1:])
