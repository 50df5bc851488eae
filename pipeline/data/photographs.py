"""Crops of the two photographs that scikit-learn carries, for restoration with nothing downloaded.

Those for validation lie on a grid in the middle of each, where most is to be seen; those for training are drawn by a
seed from its left and right.
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
_MIDDLE = (0.35, 0.65)  # of the width
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
        left, right = (int(width * share) for share in _MIDDLE)
        count = TRAIN // len(files)
        tops = torch.randint(0, height - SIDE + 1, (count,), generator=generator)
        within = torch.randint(0, left - SIDE + 1, (count,), generator=generator)
        beside = within + torch.randint(0, 2, (count,), generator=generator) * right
        places = torch.stack([tops, beside], 1).tolist()
        grid = [
            (top, at) for top in range(0, height - SIDE + 1, _STRIDE) for at in range(left, right - SIDE + 1, _STRIDE)
        ]
        for crops_of, chosen in ((train, places), (val, grid)):
            crops_of += [photograph[:, top : top + SIDE, at : at + SIDE] for top, at in chosen]
    return torch.stack(train + val), len(train)
