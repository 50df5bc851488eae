"""Change the graph of a program, and capture the changed graph again."""

import copy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def graph_of(program: "torch.export.ExportedProgram") -> "torch.fx.GraphModule":
    """A copy of a program's graph module, whose nodes are called as those of the program."""
    module = copy.deepcopy(program.graph_module)
    for copied, node in zip(module.graph.nodes, program.graph.nodes, strict=True):
        copied.name = node.name  # the copy of a node called like a builtin, `input` say, has another name
    return module


def program_of(
    module: "torch.fx.GraphModule",
    program: "torch.export.ExportedProgram",
    signature: "torch.export.ExportGraphSignature | None" = None,
    state: "dict[str, torch.Tensor] | None" = None,
) -> "torch.export.ExportedProgram":
    """The program of a graph from `graph_of`, with what is not given as in the program that it was taken from."""
    import torch

    return torch.export.ExportedProgram(
        root=module,
        graph=module.graph,
        graph_signature=signature or program.graph_signature,
        state_dict=program.state_dict if state is None else state,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants=program.constants,
        verifiers=[program.verifier],
    )
