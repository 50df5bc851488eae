"""The batches of an epoch of training: shuffled and augmented, by a seed."""

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.artifacts.manifest import Preprocessing
from pipeline.data import image_folder, splits, targets, transforms
from pipeline.tasks.base import Targets

if TYPE_CHECKING:
    import torch


def steps(split: splits.Split, batch_size: int) -> int:
    """Batches in an epoch: full ones only, since a small one would upset the batch norms."""
    return max(1, split.size("train") // batch_size)


def batches(
    split: splits.Split,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    augment: bool = True,
    device: str = "cpu",
    workers: int = 2,
    rank: int = 0,
    world: int = 1,
) -> Iterator[tuple["torch.Tensor", "torch.Tensor"]]:
    """One epoch of the train part, in an order and with distortions that follow from seed and epoch alone.

    Augmentation is a shift by up to a sixteenth of the side, and a flip where the data set allows it; for
    an image folder a random crop of at least half the area stands in for the shift. Masks, boxes and pictures are
    mirrored with their image, which is not shifted.

    Args:
        batch_size: images in a batch of all ranks together.
        device: where the batches are wanted, and where a data set held in memory is worked on.
        workers: processes that read images, for an image folder; what comes out does not depend on it.
        rank, world: which share of each batch to yield.

    Yields:
        float32 (n, C, height, width) in channels_last order, and int64 (n,), on ``device``.
    """
    import torch

    seed = _seed(seed, epoch)
    generator = torch.Generator().manual_seed(seed)
    order = torch.tensor(split.parts["train"])[torch.randperm(split.size("train"), generator=generator)]
    chunks = [order[at * batch_size :][:batch_size] for at in range(steps(split, batch_size))]
    view = targets.View(preprocessing, split.kind, split.use.scale)
    if split.is_read_singly:
        items = split.items([chunk[rank::world].tolist() for chunk in chunks])
        of_labels = transforms.FolderView(preprocessing, augment, split.facts.mirror)
        read = image_folder.batches(items, of_labels if split.kind == "label" else view, workers, seed)
        for chunk, (images, wanted) in zip(chunks, read, strict=True):
            if split.kind == "label":
                images = images.to(device).to(torch.float32).div_(255)
            elif augment:
                flips = torch.rand(len(chunk), generator=generator) < 0.5
                images, wanted = _mirrored(split.kind, images, wanted, flips[rank::world] & split.facts.mirror)
            yield transforms.laid_out(transforms.normalised(images.to(device), preprocessing)), wanted.to(device)
        return
    held, known = split.images.pixels.to(device), split.images.targets.to(device)
    for chunk in chunks:
        moves = transforms.moves(len(chunk), preprocessing.size, split.facts.mirror, generator)
        mine = chunk[rank::world].to(device)
        images, wanted = view(held[mine], known[mine])
        moves = tuple(move[rank::world].to(device) for move in moves)
        if augment and split.kind == "label":
            images = transforms.moved(images, *moves)
        elif augment:
            images, wanted = _mirrored(split.kind, images, wanted, moves[-1])
        yield transforms.laid_out(transforms.normalised(images, preprocessing)), wanted


def _mirrored(
    kind: Targets, images: "torch.Tensor", wanted: "torch.Tensor", flip: "torch.Tensor"
) -> tuple["torch.Tensor", "torch.Tensor"]:
    import torch

    images = torch.where(flip[:, None, None, None], images.flip(-1), images)
    return images, targets.mirrored(kind, wanted, flip, images.shape[-1])


def _seed(*parts: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")
