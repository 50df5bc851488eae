"""Convert a float32 program to float16, for exporters that take the precision from the program."""

import copy
from typing import TYPE_CHECKING

from pipeline.models import programs

if TYPE_CHECKING:
    import torch


def half(program: "torch.export.ExportedProgram") -> "torch.export.ExportedProgram":
    """The same network with float16 weights and arithmetic; its input and outputs stay float32.

    Args:
        program: float32, with inputs of static shapes. It is left as it is.

    Returns:
        A new program: cast, the network in float16, cast.
    """
    import torch
    from torch.utils import _pytree as pytree

    # `.half()` changes the very tensors of the program that the module came from, hence the copy.
    network = copy.deepcopy(program.module()).half()

    class Float16(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            given = self.network(*(one.half() for one in inputs))
            return pytree.tree_map(lambda one: one.float() if one.dtype is torch.float16 else one, given)

    return torch.export.export(Float16(), tuple(map(torch.zeros, programs.input_shapes(program))))
