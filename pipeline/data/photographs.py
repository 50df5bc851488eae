"""Crops of the two photographs that scikit-learn carries, for restoration with nothing downloaded.

Those for training are drawn by a seed from the left of each, those for validation lie on a grid on the right.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data import image_file

if TYPE_CHECKING:
    import torch

FILES = ("china.jpg", "flower.jpg")
SIDE = 128  # pixels
TRAIN = 800  # crops
_OF_TRAIN = 0.7  # of the width
_STRIDE = 32  # pixels, of the grid


def crops(files: Sequence[Path], seed: int = 0) -> tuple["torch.Tensor", int]:
    """uint8 (n, 3, 128, 128), and the number of the first for validation.

    Args:
        files: of the photographs.
        seed: of the places.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    train, val = [], []
    for file in files:
        photograph = image_file.read(file)
        height, width = photograph.shape[-2:]
        border = int(width * _OF_TRAIN)
        tops = torch.randint(0, height - SIDE + 1, (TRAIN // len(files),), generator=generator).tolist()
        lefts = torch.randint(0, border - SIDE + 1, (TRAIN // len(files),), generator=generator).tolist()
        train += [photograph[:, top : top + SIDE, left : left + SIDE] for top, left in zip(tops, lefts, strict=True)]
        val += [
            photograph[:, top : top + SIDE, left : left + SIDE]
            for top in range(0, height - SIDE + 1, _STRIDE)
            for left in range(border, width - SIDE + 1, _STRIDE)
        ]
    return torch.stack(train + val), len(train)
