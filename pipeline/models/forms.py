"""The forms of a network: `branched` as it was trained, `fused`, and `quantized`, which is fused and in int8."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.backends.pytorch import backend as pytorch
from pipeline.errors import InputError
from pipeline.models import checkpoints

if TYPE_CHECKING:
    from torch import nn


def module(form: str, checkpoint: Path, fused: Path, quantized: Path | None = None) -> "nn.Module":
    """One form of a network, in evaluation mode, for any batch and image size.

    Args:
        form: ``branched``, ``fused`` or ``quantized``.
        checkpoint: artifacts/<model>/checkpoint.safetensors.
        fused: artifacts/<model>/fused.pt2.
        quantized: artifacts/<model>/quantized.pt2, for the form of that name.

    Raises:
        InputError: the file of that form is missing, or damaged.
    """
    if form == "branched":
        return checkpoints.load_model(checkpoint)[0]
    file = {"fused": fused, "quantized": quantized}[form]
    if file is None:
        raise InputError("int8 files are made of quantized.pt2, but none was given; name it with --quantized.")
    return checkpoints.as_module(pytorch.read(file)[0])
