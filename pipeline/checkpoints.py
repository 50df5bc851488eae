"""Checkpoints: weights as safetensors, and a header that says what they are and how to feed them.

A pickle is only ever read with ``weights_only=True``, which refuses to run code. Keys are strict: a
checkpoint that lacks one tensor, or has one too many, is refused, and the tensor is named.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import networks
from pipeline.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.export import ExportedProgram

# one key, since the order of several in the file is not the same in every run
_KEY = "repnets"
_EMA_KEYS = ("state_dict_ema", "ema_state_dict", "model_ema", "ema")
_RAW_KEYS = ("state_dict", "model_state_dict", "model", "net")
_PICKLES = (".pth", ".pt", ".tar", ".bin")
_SHOWN = 4


def write(path: Path, state: Mapping[str, "torch.Tensor"], header: Mapping[str, Any]) -> None:
    """Write a checkpoint; the same weights and header give the same bytes.

    Args:
        path: of the .safetensors file.
        state: tensors by name, on any device and in any memory order.
        header: ``arch``, ``num_classes``, ``preprocessing`` (a Preprocessing as a dict), ``data_digest``,
            ``epoch``, ``weights`` (``raw`` or ``ema``), and whatever else belongs to it, as JSON types.
    """
    from safetensors.torch import save_file

    # cloned, since a layer that the network holds under two names would share its memory
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    save_file(tensors, path, metadata={_KEY: json.dumps(header, sort_keys=True, allow_nan=False)})


def read(path: Path) -> tuple[dict[str, "torch.Tensor"], dict[str, Any]]:
    """Tensors and header of a checkpoint that this pipeline wrote. InputError where it did not."""
    from safetensors.torch import load_file

    header = read_header(path)
    return load_file(path), header


def read_header(path: Path) -> dict[str, Any]:
    """Header of a checkpoint that this pipeline wrote, without torch.

    Raises:
        InputError: the file is missing, empty, truncated, or has no header of this pipeline.
    """
    header = _own_header(path)
    if header is None:
        raise InputError(
            f"{path} has no header of this pipeline, so its network and its preprocessing are unknown. Name "
            "the file as `checkpoint:` of a model in config.yaml; the stage `adopt` then checks it and "
            "writes the header."
        )
    return header


def code_modules(path: Path) -> tuple[str, ...]:
    """The modules that build a checkpoint's network: their code shapes whatever is made of the checkpoint."""
    return networks.code_modules(read_header(path)["arch"])


def load_model(path: Path) -> tuple["nn.Module", dict[str, Any]]:
    """The network of a checkpoint, in evaluation mode, float32, on the CPU; and the header.

    Raises:
        InputError: as for `read_header` and `networks.build`; weights that do not fit the network or are not finite.
    """
    state, header = read(path)
    model = networks.build(header["arch"], header["num_classes"])
    load_strict(model, state, header["arch"], str(path))
    return model.eval(), header


def as_module(program: "ExportedProgram") -> "nn.Module":
    """The network of a fused.pt2, as a module that takes any batch and image size.

    Without the exporter's guards: it captures a small network at a larger size, and then forbids, without
    need, the sizes at which the last feature map is a single pixel.
    """
    return program.module(check_guards=False)


def load_strict(model: "nn.Module", state: Mapping[str, "torch.Tensor"], arch: str, source: str) -> None:
    """Load weights into a network, in place, as float32.

    A missing ``num_batches_tracked`` alone is forgiven: it plays no part in what the network computes.

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
    counters = {name: wanted[name] for name in wanted if name.endswith("num_batches_tracked")}
    state = {**counters, **state}
    missing, surplus = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or surplus:
        problems = [f"{_some(names)} {kind}" for names, kind in ((missing, "missing"), (surplus, "too many")) if names]
        raise InputError(
            f"{source} does not hold the weights of `{arch}`: {'; '.join(problems)}. It belongs to another "
            "network or to another layout of its keys; set `arch` to the network that it was trained as."
        )
    for name, tensor in wanted.items():
        if state[name].shape != tensor.shape:
            raise InputError(_wrong_shape(name, state[name], tensor, model, arch, source))
    _refuse_sick(state, source)
    model.load_state_dict({name: tensor.to(wanted[name].dtype) for name, tensor in state.items()})
    model.to(torch.float32)


def read_foreign(path: Path) -> dict[str, "torch.Tensor"]:
    """The tensors of a checkpoint that somebody else wrote; see `open_foreign`."""
    return open_foreign(path)[0]


def open_foreign(path: Path) -> tuple[dict[str, "torch.Tensor"], str, dict[str, Any] | None]:
    """Read a .safetensors, or a .pth or .pt without running any code that is in it.

    A dict around the weights is unwrapped (``state_dict``, ``model``, ``ema`` and the like), and the
    ``module.`` that data-parallel training puts before each key is taken off. Where a file holds both,
    the average (``ema``) is taken, since that is what is evaluated.

    Returns:
        The tensors by name; ``raw`` or ``ema``; and the header, where this pipeline wrote the file.

    Raises:
        InputError: the file is missing, empty, truncated, of an unknown kind, holds no tensors, or is a
            pickle that would run code.
    """
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        header = _own_header(path)
        return _stripped(load_file(path)), (header or {}).get("weights", "raw"), header
    if path.suffix not in _PICKLES:
        raise InputError(f"{path} is neither .safetensors nor {', '.join(_PICKLES)}. Save it as safetensors.")
    loaded = _unpickled(path)
    weights = "raw"
    for _ in range(3):
        inner = next((name for name in (*_EMA_KEYS, *_RAW_KEYS) if isinstance(_get(loaded, name), Mapping)), None)
        if inner is None:
            break
        loaded, weights = loaded[inner], "ema" if inner in _EMA_KEYS else weights
    return _stripped(_tensors(loaded, path)), weights, None


def _own_header(path: Path) -> dict[str, Any] | None:
    """Metadata of this pipeline in a safetensors file, checked to be whole; None where there is none."""
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
            table = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in table.items() if name != "__metadata__"]
        if size < 8 + length + max(ends, default=0):
            raise ValueError(f"it has {size} bytes and should have {8 + length + max(ends)}")
        own = table.get("__metadata__", {}).get(_KEY)
        return None if own is None else json.loads(own)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not a whole safetensors file: {error}. A download of it was cut short; get it again."
        ) from None


def _unpickled(path: Path) -> Any:
    import pickle

    import torch

    if not path.is_file():
        raise InputError(f"{path} does not exist. Check the name of the checkpoint.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty, so a copy or a download of it failed. Get it again.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())
        at = max(reason.find(word) for word in ("GLOBAL", "Unsupported global", "Unsupported class"))
        if at < 0:
            raise InputError(f"{path} is no checkpoint, or was cut short: {reason[:200]}. Get it again.") from None
        raise InputError(
            f"{path} holds more than tensors, and reading it would run code that is in it; nothing of it "
            f"was run ({reason[at : at + 120]}). Save the weights alone, `torch.save(model.state_dict(), "
            "...)`, or as safetensors."
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is no checkpoint, or was cut short: {reason}. Get it again.") from None


def _get(loaded: Any, name: str) -> Any:
    return loaded.get(name) if isinstance(loaded, Mapping) else None


def _tensors(loaded: Any, path: Path) -> dict[str, "torch.Tensor"]:
    import torch

    if not isinstance(loaded, Mapping):
        raise InputError(f"{path} holds a {type(loaded).__name__} and no weights by name. Save `model.state_dict()`.")
    odd = [str(name) for name, value in loaded.items() if not isinstance(value, torch.Tensor)]
    if odd or not loaded:
        raise InputError(
            f"{path} holds no weights by name: "
            f"{_some(odd) + ' no tensors' if odd else 'it is an empty dict'}. Save `model.state_dict()`, "
            "alone or under `state_dict`, `model` or `ema`."
        )
    return dict(loaded)


def _stripped(state: Mapping[str, "torch.Tensor"]) -> dict[str, "torch.Tensor"]:
    state = {name: tensor for name, tensor in state.items() if name != "n_averaged"}
    while state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


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


def _wrong_shape(
    name: str, found: "torch.Tensor", wanted: "torch.Tensor", model: "nn.Module", arch: str, source: str
) -> str:
    from torch import nn

    last = [one for one, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    if name in (f"{last}.weight", f"{last}.bias") and found.shape[1:] == wanted.shape[1:]:
        return (
            f"{source} tells {found.shape[0]} classes apart (`{name}`), but the data set has "
            f"{wanted.shape[0]}. Set `data` to the data set that it was trained on, or train a new network."
        )
    return (
        f"{source}: `{name}` has the shape {tuple(found.shape)}, but in `{arch}` it is "
        f"{tuple(wanted.shape)}. Set `arch` to the network that it was trained as."
    )


def _some(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:_SHOWN])
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{shown}{rest} {'is' if len(names) == 1 else 'are'}"
