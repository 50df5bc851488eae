"""Rewrite global means so that they are delegated to XNNPACK."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.models.passes.rewriting import graph_of, program_of

if TYPE_CHECKING:
    import torch
    from torch.fx import Node


def keep_dimensions(program: "torch.export.ExportedProgram") -> "torch.export.ExportedProgram":
    """The same network, in which a mean over height and width keeps both as 1, and a view drops them.

    XNNPACK computes a global mean only where its output has four dimensions; any other one would be left to
    ExecuTorch's own kernel, and what follows it to a graph of its own.

    Args:
        program: for inference, of static shape, as `torch.export.export` gives it. It is left as it is.

    Returns:
        A new program, or the same where there is no such mean. No node is renamed. A mean that is the network's output
        stays.
    """
    import torch

    if not any(map(_drops_the_image, program.graph.nodes)):
        return program
    module = graph_of(program)
    keep_dimensions_in(module, lambda mean, shape: (torch.ops.aten.view.default, (mean, list(shape))))
    return program_of(module, program)


def keep_dimensions_in(
    module: "torch.fx.GraphModule", drop: "Callable[[Node, Sequence[Any]], tuple[Any, tuple]]"
) -> None:
    """Do the same to a graph module, of free sizes too, in place.

    Args:
        module: of ATen operators, with their shapes noted.
        drop: which operator, with which arguments, drops the dimensions: for a mean, and the shape that it had.
    """
    for mean in filter(_drops_the_image, list(module.graph.nodes)):
        value = mean.meta["val"]
        with module.graph.inserting_after(mean):
            flat = module.graph.call_function(*drop(mean, value.shape))
        mean.replace_all_uses_with(flat, delete_user_cb=lambda user, flat=flat: user is not flat)
        flat.meta = {**mean.meta, "val": value}
        mean.args, mean.meta["val"] = (*mean.args[:2], True), value[..., None, None]
    module.recompile()


def _drops_the_image(node: "Node") -> bool:
    """Whether a node is a mean over the last two of four dimensions that drops them, and not the network's output."""
    import torch

    if node.target is not torch.ops.aten.mean.dim or node.kwargs or any(node.args[2:]):
        return False
    dimensions = node.args[0].meta["val"].dim()
    return (
        dimensions == 4
        and sorted(one % dimensions for one in node.args[1] or ()) == [2, 3]
        and not any(user.op == "output" for user in node.users)
    )
