"""Global means written so that XNNPACK takes them."""

import copy
from typing import TYPE_CHECKING

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

    if not any(map(drops_the_image, program.graph.nodes)):
        return program
    module = copy.deepcopy(program.graph_module)
    for copied, node in zip(module.graph.nodes, program.graph.nodes, strict=True):
        copied.name = node.name  # the copy of a node called like a builtin, `input` say, has another name
    for mean in filter(drops_the_image, list(module.graph.nodes)):
        value = mean.meta["val"]
        with module.graph.inserting_after(mean):
            flat = module.graph.call_function(torch.ops.aten.view.default, (mean, list(value.shape)))
        mean.replace_all_uses_with(flat, delete_user_cb=lambda user, flat=flat: user is not flat)
        flat.meta = {**mean.meta, "val": value}
        mean.args, mean.meta["val"] = (*mean.args[:2], True), value[..., None, None]
    module.recompile()
    return torch.export.ExportedProgram(
        root=module,
        graph=module.graph,
        graph_signature=program.graph_signature,
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants=program.constants,
        verifiers=[program.verifier],
    )


def drops_the_image(node: "Node") -> bool:
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
