"""Checkpoints that somebody else wrote: read without running what is in them, and brought into our layout.

A pickle is only ever read with ``weights_only=True``, which refuses to run code.
"""

import io
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import regular_file
from pipeline.artifacts.checkpoint_header import CheckpointHeader
from pipeline.errors import InputError, first_line, quoted, reading
from pipeline.models import checkpoints, file_kinds, networks
from repnets.checkpoints import layouts
from repnets.checkpoints.prefixes import without_prefix
from repnets.checkpoints.state_dict_errors import listed
from repnets.errors import RepnetsError

if TYPE_CHECKING:
    import torch
    from torch import nn

_EMA_KEYS = ("state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "params_ema", "ema")
_RAW_KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "params", "weights")
_NESTED = 8  # wrappers in one another
_LEGACY_PICKLES = 4  # a .pth that is no zip opens with a magic number, a version, facts of the system, the object
_OF_A_MODULE = {"_parameters", "_buffers", "_modules"}  # attributes that every pickled nn.Module has
_ROOM = 1 << 24  # bytes; an object's pickle, which holds names and no values, ends long before


def read(path: Path) -> tuple[dict[str, "torch.Tensor"], str, CheckpointHeader | None]:
    """Read a .safetensors, or a .pth, .pt or .ckpt without running any code that is in it.

    A dict around the weights is unwrapped (``state_dict``, ``model``, ``ema``, DeepSpeed's ``module`` and the like,
    also in one another). Where a file holds both, the average (``ema``) is taken, since that is what is evaluated.
    Keys stay as they are: which prefix is too much, only the network's own keys tell (`prefixes.without_prefix`).

    Returns:
        The tensors by name; ``raw`` or ``ema``; and the header, where this pipeline wrote the file.

    Raises:
        InputError: the file is missing, empty, truncated, of another kind, holds no tensors, or is a pickle that would
            run code.
    """
    file_kinds.require_checkpoint(path)
    if path.suffix == file_kinds.SAFETENSORS:
        _, header = checkpoints.read_table(path)
        return _weights(checkpoints.tensors(path)), header.weights if header else "raw", header
    loaded = _unpickled(path)
    state, weights = _unwrapped(loaded, set()) or (loaded, "raw")
    return _weights(_tensors(state, path)), weights, None


def as_ours(state: Mapping[str, "torch.Tensor"], arch: str, source: str) -> tuple[dict[str, "torch.Tensor"], str]:
    """The same weights in our layout, and their form, ``training`` or ``deploy``; without a prefix that is too much.

    Weights of a network without layouts in `repnets.checkpoints.layouts` are ours already, and of the training form.

    Raises:
        InputError: the layout is unknown; a tensor is missing, surplus or of the wrong shape. All are named.
    """
    if not layouts.namings(arch):
        return dict(state), "training"
    try:
        return layouts.convert(state, arch), layouts.recognise(state).form
    except RepnetsError as error:
        raise InputError(f"{source}: {error}") from None


def network(
    state: Mapping[str, "torch.Tensor"], arch: str, num_classes: int, source: str, channels: int = 3
) -> "tuple[nn.Module, str]":
    """The network of a checkpoint, in evaluation mode, and its form, ``training`` or ``deploy``.

    Args:
        state: its tensors by name, in any known layout, with a prefix or without.
        arch: as config.yaml names it.
        num_classes, channels: of the network.
        source: where the weights came from, for messages.

    Raises:
        InputError: as `as_ours`, `networks.build` and `checkpoints.load_strict`.
    """
    ours, form = as_ours(state, arch, source)
    model = networks.build(arch, num_classes, form == "deploy", channels)
    if form == "deploy":
        # the network names a convolution after what was folded into it, the layout after its block
        in_network = {name: key for key, name in layouts.block_names(model.state_dict()).items()}
        ours = {in_network.get(name, name): tensor for name, tensor in ours.items()}
    checkpoints.load_strict(model, without_prefix(ours, model.state_dict()), arch, source)
    return model.eval(), form


def form_of(path: Path, arch: str) -> str:
    """``deploy`` where a checkpoint's keys say that its network was folded already, else ``training``.

    Keys alone are looked at, without torch: the Snakefile asks when it is parsed. A file that cannot be read,
    or is of no known layout, counts as ``training``; the stage `adopt` reads it whole and says what is wrong.
    """
    if not layouts.namings(arch):
        return "training"
    try:
        return layouts.recognise(keys_of(path)).form
    except (InputError, RepnetsError):
        return "training"


def keys_of(path: Path) -> list[str]:
    """Names of the tensors in a .safetensors; of a pickle, every string in it. No tensor is read, and no code run.

    Raises:
        InputError: the file is missing or damaged.
    """
    if path.suffix == ".safetensors":
        return checkpoints.read_table(path)[0]
    if not path.is_file():
        raise InputError(f"{path} does not exist. Check the name of the checkpoint.")
    with reading(path, "Get it again."):
        return list(_strings(path))


def _strings(path: Path) -> Iterator[str]:
    """Every string that a pickle mentions. A pickle is a program; it is listed here, never run."""
    if regular_file.is_zip(path):
        with zipfile.ZipFile(path) as archive:
            name = next((name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"), "data.pkl")
            with archive.open(name) as file:
                pickled = file.read(_ROOM)
        pickles = 1
    else:
        with path.open("rb") as file:
            pickled = file.read(_ROOM)
        pickles = _LEGACY_PICKLES
    program = io.BytesIO(pickled)
    for _ in range(pickles):
        yield from (argument for _, argument, _ in pickletools.genops(program) if isinstance(argument, str))


def _unpickled(path: Path) -> Any:
    import pickle

    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())
        at = max(reason.find(word) for word in ("GLOBAL", "Unsupported global", "Unsupported class"))
        if at < 0:
            raise InputError(f"{path} is no checkpoint, or was cut short: {quoted(reason)}. Get it again.") from None
        if _holds_a_network(path):
            raise InputError(
                f"{path} holds a whole network as `torch.save(model, ...)` writes it, and reading that would run code; "
                f"nothing of it was run. Save its weights alone, where its code is: {file_kinds.STATE_DICT}."
            ) from None
        raise InputError(
            f"{path} holds more than tensors, and reading it would run code that is in it; nothing of it "
            f"was run ({quoted(reason[at : at + 120])}). Save the weights alone, `torch.save(model.state_dict(), "
            "...)`, or as safetensors."
        ) from None
    except Exception as error:  # what is no pickle fails wherever its bytes lead the reader
        raise InputError(f"{path} is no checkpoint, or was cut short: {first_line(error)}. Get it again.") from None


def _holds_a_network(path: Path) -> bool:
    """Whether a pickle holds a pickled nn.Module, as far as it can be listed."""
    found = set()
    with suppress(InputError), reading(path):
        found.update(_strings(path))
    return found >= _OF_A_MODULE


def _unwrapped(loaded: Any, seen: set[int], depth: int = _NESTED) -> tuple[Mapping[Any, Any], str] | None:
    """The innermost dict with tensors in it that known keys lead to, and ``raw`` or ``ema``; None if there is none."""
    import torch

    if not isinstance(loaded, Mapping) or id(loaded) in seen or depth == 0:
        return None
    seen.add(id(loaded))
    for name in (*_EMA_KEYS, *_RAW_KEYS):
        if found := _unwrapped(loaded.get(name), seen, depth - 1):
            return found[0], "ema" if name in _EMA_KEYS else found[1]
    return (loaded, "raw") if any(isinstance(value, torch.Tensor) for value in loaded.values()) else None


def _tensors(loaded: Any, path: Path) -> dict[str, "torch.Tensor"]:
    import torch

    if not isinstance(loaded, Mapping):
        raise InputError(f"{path} holds a {type(loaded).__name__} and no weights by name. Save `model.state_dict()`.")
    odd = [str(name) for name, value in loaded.items() if not isinstance(value, torch.Tensor)]
    if odd or not loaded:
        problem = f"{listed(odd, list(map(str, loaded)))} no tensors" if odd else "it is an empty dict"
        raise InputError(
            f"{path} holds no weights by name: {problem}. Save `model.state_dict()`, alone or under `state_dict`, "
            "`model` or `ema`."
        )
    return dict(loaded)


def _weights(state: Mapping[str, "torch.Tensor"]) -> dict[str, "torch.Tensor"]:
    """All but the counter of an average (`torch.optim.swa_utils.AveragedModel`)."""
    return {name: tensor for name, tensor in state.items() if name.rpartition(".")[2] != "n_averaged"}
