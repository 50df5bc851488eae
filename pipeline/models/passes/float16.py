"""Convert a float32 program to float16, for exporters that take the precision from the program."""

import copy
from typing import TYPE_CHECKING

from pipeline.models import programs

if TYPE_CHECKING:
    import torch


def half(program: "torch.export.ExportedProgram") -> "torch.export.ExportedProgram":
    """The same network with float16 weights and arithmetic; its input and output stay float32.

    Args:
        program: float32, with one input of a static shape and one output. It is left as it is.

    Returns:
        A new program: cast, the network in float16, cast.
    """
    import torch

    # `.half()` changes the very tensors of the program that the module came from, hence the copy.
    network = copy.deepcopy(program.module()).half()

    class Float16(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.network(image.half()).float()

    return torch.export.export(Float16(), (torch.zeros(programs.input_shape(program)),))
