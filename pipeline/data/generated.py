"""Pictures made by a seed, for networks that are exported without any data: noise, ramps, flat colours, black, white.

They show that two files compute the same. They tell nothing about how good a network is, and no range for int8.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.artifacts.samples import InputShape

if TYPE_CHECKING:
    import torch

SIDE = 256  # pixels; they are resized to the network's size as pictures are


def pictures(seed: int = 0) -> "torch.Tensor":
    """uint8 (64, 3, 256, 256): noise of all frequencies and of low ones, ramps, flat ones, black and white."""
    import torch
    from torch.nn import functional

    generator = torch.Generator().manual_seed(seed)

    def uniform(count: int, side: int) -> torch.Tensor:
        return torch.rand(count, 3, side, side, generator=generator)

    def smooth(count: int, cells: int) -> torch.Tensor:
        wide = functional.interpolate(uniform(count, cells), (SIDE, SIDE), mode="bicubic", align_corners=False)
        return wide.clamp(0, 1)

    ramp = torch.linspace(0, 1, SIDE).expand(3, SIDE, SIDE)
    fixed = torch.stack([ramp, ramp.mT, 1 - ramp, torch.zeros_like(ramp), torch.ones_like(ramp), ramp.mT.flip(-2)])
    flat = uniform(6, 1).expand(-1, -1, SIDE, SIDE)
    normal = (0.5 + 0.2 * torch.randn(12, 3, SIDE, SIDE, generator=generator)).clamp(0, 1)
    parts = [uniform(12, SIDE), normal, smooth(12, 4), smooth(8, 16), smooth(8, 64), flat, fixed]
    return (torch.cat(parts) * 255).round().to(torch.uint8)


def samples(inputs: Sequence[InputShape], seed: int = 0) -> "torch.Tensor":
    """float32 (64, numbers), for a network of several inputs: noise of three widths, flat ones, zeros and ones."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    parts = []
    for one in inputs:
        normal = torch.randn(40, one.numbers, generator=generator)
        normal[:8] *= 0.1
        normal[8:16] *= 3
        uniform = torch.rand(16, one.numbers, generator=generator)
        flat = torch.randn(6, 1, generator=generator).expand(-1, one.numbers)
        parts.append(torch.cat([normal, uniform, flat, torch.zeros(1, one.numbers), torch.ones(1, one.numbers)]))
    return torch.cat(parts, 1)
