"""No network: a large product of two float32 matrices, which shows how much this machine can multiply."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

PACKAGES = ("torch",)


def write(file: Path, side: int) -> int:
    """Write a file that `open_session` reads; returns the floating-point operations of the product.

    Args:
        file: where to write it.
        side: of the square matrices.
    """
    file.write_text(str(side))
    return 2 * side**3


def open_session(file: Path, threads: int) -> "Callable[[np.ndarray], np.ndarray]":
    """Whatever it is fed, multiplies the matrices, and gives their product."""
    import torch

    torch.set_num_threads(threads)
    generator, side = torch.Generator().manual_seed(0), int(file.read_text())
    left, right = (torch.randn(side, side, generator=generator) for _ in range(2))
    product = torch.empty(side, side)

    def run(images: "np.ndarray") -> "np.ndarray":
        return torch.mm(left, right, out=product).numpy()

    return run
