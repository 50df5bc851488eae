"""Pictures made by a seed, for networks that are exported without any data: noise, ramps, flat colours, black, white.

They show that two files compute the same. They tell nothing about how good a network is, and no range for int8.
"""

from typing import TYPE_CHECKING

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
