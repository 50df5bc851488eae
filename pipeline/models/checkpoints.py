"""Checkpoints: weights as safetensors, with a `CheckpointHeader`.

Keys are strict: a checkpoint with a missing or surplus tensor is refused, and the tensor is named. Files of other tools
are read by `pipeline.models.external_checkpoints`.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.artifacts import documents
from pipeline.artifacts.checkpoint_header import CheckpointHeader
from pipeline.errors import InputError, first_line, reading
from pipeline.models import networks
from repnets.checkpoints.state_dict_errors import misnamed, misshapen

if TYPE_CHECKING:
    import torch
    from torch import nn

_TABLE_ROOM = 100_000_000  # bytes; the limit of the safetensors library itself

# one key, since the order of several in the file is not the same in every run
_KEY = "repnets"


def write(path: Path, state: Mapping[str, "torch.Tensor"], header: CheckpointHeader) -> None:
    """Write a checkpoint; the same weights and header give the same bytes.

    Args:
        path: of the .safetensors file.
        state: tensors by name, on any device and in any memory order.
        header: of the checkpoint.
    """
    from safetensors.torch import save_file

    # cloned, because a layer that the network has under two names would share its memory
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    save_file(tensors, path, metadata={_KEY: json.dumps(documents.plain(header), sort_keys=True, allow_nan=False)})


def read(path: Path) -> tuple[dict[str, "torch.Tensor"], CheckpointHeader]:
    """Tensors and header of a checkpoint of this pipeline. InputError if it is none."""
    header = read_header(path)
    return tensors(path), header


def tensors(path: Path) -> dict[str, "torch.Tensor"]:
    """The tensors of a file whose table was read (`read_table`). InputError where they overlap."""
    from safetensors.torch import load_file

    with reading(path, "Get it again."):
        return load_file(path)


def read_header(path: Path) -> CheckpointHeader:
    """Header of a checkpoint of this pipeline, without torch.

    Raises:
        InputError: the file is missing, empty or truncated, or has no header of this pipeline that can be read.
    """
    _, header = read_table(path)
    if header is None:
        raise InputError(
            f"{path} has no header of this pipeline, so its network and its preprocessing are unknown. Name "
            "the file as `checkpoint:` of a model in config.yaml; the stage `adopt` then checks it and "
            "writes the header."
        )
    return header


def code_modules(path: Path) -> tuple[str, ...]:
    """The modules that build a checkpoint's network: all that is made from the checkpoint depends on their code."""
    header = read_header(path)
    return networks.code_modules(header.arch, header.is_folded)


def load_model(path: Path) -> tuple["nn.Module", CheckpointHeader]:
    """The network of a checkpoint, in evaluation mode, float32, on the CPU; and the header.

    It is the fused network if the weights are of one: see `CheckpointHeader.is_folded`.

    Raises:
        InputError: as for `read_header` and `networks.build`; weights that do not fit the network or are not finite.
    """
    state, header = read(path)
    model = networks.build(header.arch, header.num_classes, header.is_folded, header.preprocessing.channels)
    load_strict(model, state, header.arch, str(path))
    return model.eval(), header


def load_strict(model: "nn.Module", state: Mapping[str, "torch.Tensor"], arch: str, source: str) -> None:
    """Load weights into a network, in place, as float32.

    A ``num_batches_tracked`` alone may be missing or too many: it plays no part in what the network computes.

    Args:
        model: the network.
        state: its tensors by name.
        arch: name of the network, for the message.
        source: where the weights came from, for the message.

    Raises:
        InputError: a tensor is missing, surplus, or of the wrong shape; the number of classes differs; a
            value is not finite; a variance is negative. The tensors are named.
    """
    import torch

    wanted = model.state_dict()
    if problem := misnamed(state, wanted):
        raise InputError(
            f"{source} does not hold the weights of `{arch}`: {problem}. It belongs to another network or to another "
            "layout of its keys; set `arch` to the network that it was trained as."
        )
    state = {name: state.get(name, tensor) for name, tensor in wanted.items()}
    _refuse_other_shapes(state, wanted, arch, source)
    _refuse_sick(state, source)
    model.load_state_dict({name: tensor.to(wanted[name].dtype) for name, tensor in state.items()})
    model.to(torch.float32)


def read_table(path: Path) -> tuple[list[str], CheckpointHeader | None]:
    """Names of the tensors in a safetensors file, and the header of this pipeline, if any; without torch.

    Raises:
        InputError: the file is missing, empty, truncated, or no safetensors file; its header cannot be read.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist. Check the name, or train the network first.")
    size = path.stat().st_size
    if size == 0:
        raise InputError(f"{path} is empty, so a copy or a download of it failed. Get it again.")
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size:
                raise ValueError("it ends before its table of contents does")
            if length > _TABLE_ROOM:
                raise ValueError(f"its table of contents has {length:,} bytes, and {_TABLE_ROOM:,} are the most")
            table = json.loads(file.read(length))
        own = table.pop("__metadata__", {}).get(_KEY)
        ends = [entry["data_offsets"][1] for entry in table.values()]
        if size < 8 + length + max(ends, default=0):
            raise ValueError(f"it has {size} bytes and should have {8 + length + max(ends)}")
        names = list(table)
    except (struct.error, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is not a whole safetensors file: {first_line(error)}. A download of it was cut short; get it "
            "again."
        ) from None
    if own is None:
        return names, None
    remedy = "Train the network again; or save its tensors without that header, and adopt the file."
    content = str(own).encode(errors="backslashreplace")  # half of a surrogate pair can stand in JSON
    return names, documents.parse(CheckpointHeader, content, f"the header in {path}", remedy)


def _refuse_sick(state: Mapping[str, "torch.Tensor"], source: str) -> None:
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            count = int((~tensor.isfinite()).sum())
            raise InputError(
                f"{source}: `{name}` holds {count} values that are NaN or infinite, so its training "
                "diverged. Take an earlier checkpoint, or train again with a lower learning rate."
            )
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise InputError(
                f"{source}: `{name}` holds a negative variance ({float(tensor.min()):.3g}), which no batch "
                "norm can have; the file is damaged or was averaged wrongly. Take another checkpoint."
            )


def _refuse_other_shapes(
    state: Mapping[str, "torch.Tensor"], wanted: Mapping[str, "torch.Tensor"], arch: str, source: str
) -> None:
    linear = [name for name, tensor in wanted.items() if name.endswith("weight") and tensor.dim() == 2]
    other = [name for name, tensor in wanted.items() if name.endswith("weight") and tensor.dim() > 2]
    for last in (linear or other)[-1:]:  # the classifier
        found, here = state[last].shape, wanted[last].shape
        if found[:1] != here[:1] and found[1:] == here[1:]:
            raise InputError(
                f"{source} tells {found[0]} classes apart (`{last}`), but the data set has {here[0]}. Set `data` to "
                "the data set that it was trained on, or train a new network."
            )
    if problem := misshapen(state, {name: tensor.shape for name, tensor in wanted.items()}, arch):
        raise InputError(f"{source}: {problem}. Set `arch` to the network that it was trained as.")
