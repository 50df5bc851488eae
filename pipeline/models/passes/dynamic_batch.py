"""Make the batch of a traced program free, for exporters that support it."""

from typing import TYPE_CHECKING

from pipeline.errors import StageError
from pipeline.models import programs

if TYPE_CHECKING:
    import torch


def with_open_batch(
    program: "torch.export.ExportedProgram", smallest: int, largest: int
) -> "torch.export.ExportedProgram":
    """The same network for any batch from the smallest to the largest.

    Args:
        program: of inputs (N, ...) and outputs (N, ...), N fixed. It is left as it is.
        smallest, largest: of the batches to come, 1 or more.

    Returns:
        A new program whose first dimension is open. What was a reshape to N images is one to any number.

    Raises:
        StageError: it holds the batch in another way.
    """
    import torch

    module = programs.graph_module(program)
    depends: set[torch.fx.Node] = set()  # on the input: a reshape of weights has no batch
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if (node.op == "placeholder" or depends & set(node.all_input_nodes)) and isinstance(value, torch.Tensor):
            depends.add(node)
        is_reshape = node.target in (torch.ops.aten.view.default, torch.ops.aten.reshape.default)
        if is_reshape and node in depends and node.args[0].meta["val"].shape[0] == value.shape[0]:
            node.args = (node.args[0], [-1, *value.shape[1:]])
    module.recompile()
    some = max(2, smallest)  # a batch of one would be traced as a constant
    inputs = tuple(torch.zeros(some, *rest) for _, *rest in programs.input_shapes(program))
    dimension = torch.export.Dim("batch", min=smallest, max=largest)
    try:
        return torch.export.export(module, inputs, dynamic_shapes=({0: dimension},) * len(inputs))
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise StageError(
            f"the network cannot be exported for any batch: {reason}. Leave `dynamic_batch` out of the "
            f"target's options, or take the size of the batch from the input in the network's forward."
        ) from error
