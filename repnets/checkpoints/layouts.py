"""Convert checkpoints between layouts: repnets, the official RepVGG and MobileOne, and timm.

A network's tensors are the same in each, under other names. RepVGG's, as an example:

| naming   | form training                   | form deploy: a block is one convolution |
| -------- | ------------------------------- | --------------------------------------- |
| repnets  | stage1.0.dense.conv.weight      | stage1.0.weight                         |
| official | stage1.0.rbr_dense.conv.weight  | stage1.0.rbr_reparam.weight             |
| timm     | stages.0.0.conv_kxk.conv.weight | stages.0.0.reparam_conv.weight          |

The functions here take and give state dicts, tensors by name, and change neither their input nor a tensor.
Importing this imports no torch: a layout is recognised by its keys alone.

Sources: github.com/DingXiaoH/RepVGG, github.com/apple/ml-mobileone, timm.models.byobnet.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from repnets.checkpoints.prefixes import without_prefix
from repnets.checkpoints.state_dict_errors import COUNTER, misnamed, misshapen
from repnets.errors import RepnetsError
from repnets.networks import MODELS, create_model

if TYPE_CHECKING:
    from torch import Size, Tensor


@dataclass(frozen=True)
class Layout:
    """How a file names the tensors of a network.

    Attributes:
        naming: `repnets`, `official` or `timm`.
        form: `training`, with every branch, or `deploy`, with each block folded into one convolution.
    """

    naming: str
    form: str

    def __str__(self) -> str:
        return f"{self.naming} {self.form}"


# Names, ours first. A name is any number of whole parts of a key; _FOLDED is a block's one convolution.

_FOLDED = "folded"
_HEAD = "head.linear"

_TIMM = {
    **{"stage0": "stem", "stage1": "stages.0", "stage2": "stages.1", "stage3": "stages.2", "stage4": "stages.3"},
    **{"se.reduce": "attn.fc1", "se.expand": "attn.fc2", _HEAD: "head.fc", _FOLDED: "reparam_conv"},
}
_NAMES: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "toy": {"repnets": {}},
    "qarepvgg": {"repnets": {}},
    "repvgg": {
        "repnets": {},
        "official": {
            **{"dense": "rbr_dense", "pointwise": "rbr_1x1", "identity": "rbr_identity", _FOLDED: "rbr_reparam"},
            **{"se.reduce": "se.down", "se.expand": "se.up", _HEAD: "linear"},
        },
        "timm": {**_TIMM, "dense": "conv_kxk", "pointwise": "conv_1x1"},
    },
    "mobileone": {
        "repnets": {},
        "official": {
            **{"convs": "rbr_conv", "scale": "rbr_scale", "skip": "rbr_skip", _FOLDED: "reparam_conv"},
            _HEAD: "linear",
        },
        "timm": {**_TIMM, "convs": "conv_kxk", "scale": "conv_scale", "skip": "identity"},
    },
}

# What tells a layout: a key that no other layout has.

_BLOCK = r"stage\d+(?:\.\d+)?(?!\.?\d)"  # whole: the number of a block is never taken for a name below it
_OURS, _TIMMS = rf"(?:^|\.){_BLOCK}\.", r"(?:^|\.)(?:stem|stages\.\d+\.\d+)\."
_MARKS = {
    Layout("repnets", "training"): rf"{_OURS}(?:(?:dense|pointwise|convs\.\d+|scale)\.bn|identity|skip)\.",
    # a convolution of the training form has no bias
    Layout("repnets", "deploy"): rf"{_OURS}(?:(?:dense|pointwise|convs\.\d+|scale)(?:\.conv)?(?:_\d+)?\.)?bias$",
    Layout("official", "training"): rf"{_OURS}rbr_(?:dense|1x1|identity|conv|scale|skip)\.",
    Layout("official", "deploy"): rf"{_OURS}(?:rbr_reparam|reparam_conv)\.",
    Layout("timm", "training"): rf"{_TIMMS}(?:conv_kxk|conv_1x1|conv_scale|identity)\.",
    Layout("timm", "deploy"): rf"{_TIMMS}reparam_conv\.",
}
_OF_A_BLOCK = re.compile(rf"({_BLOCK})\.(?!se\.)(?:.+\.)?(weight|bias)")
_MAIN_WEIGHT = re.compile(rf"({_BLOCK})\.(?:dense|convs\.0)\.conv\.weight")


def namings(arch: str) -> tuple[str, ...]:
    """The namings that there are of a network; none for one that has no table here, or is unknown."""
    known = arch in MODELS and MODELS[arch].task == "classification"
    return tuple(_NAMES.get(arch.partition("_")[0], ())) if known else ()


def recognise(keys: Iterable[str]) -> Layout:
    """The layout that a file's keys are of; a prefix such as `module.` does not matter.

    Raises:
        RepnetsError: The keys are of no layout that is known here, or of several at once.
    """
    keys = [key for key in keys if not key.endswith(COUNTER)]
    found = {
        layout: key
        for layout, mark in _MARKS.items()
        if (key := next((key for key in keys if re.search(mark, key)), None)) is not None
    }
    if not found:
        first = f"; the first of them is `{keys[0]}`" if keys else ""
        raise RepnetsError(
            f"None of the {len(keys)} keys is of a layout that is known here{first}. Known are the training and "
            "the deploy form of RepVGG and MobileOne as repnets, their authors (official) and timm name them."
        )
    if len(found) > 1:
        each = "; ".join(f"`{key}` is of {layout}" for layout, key in found.items())
        raise RepnetsError(
            f"The keys are of {len(found)} layouts at once: {each}. Such a file was saved while its network was "
            "folded in part, or holds two networks; save the network again, in one form."
        )
    return next(iter(found))


def identify(state: Mapping[str, Tensor]) -> str | None:
    """The name of the network whose weights these are, by the shape of each; None where no network fits.

    Raises:
        RepnetsError: As for `recognise`.
    """
    layout = recognise(state)
    having = (arch for arch in MODELS if layout.naming in namings(arch))
    return next((arch for arch in having if _misfit(_plain(state, arch, layout), arch, layout) is None), None)


def convert(state: Mapping[str, Tensor], arch: str, naming: str = "repnets") -> dict[str, Tensor]:
    """The same weights under the names of another project; their form, training or deploy, stays.

    A prefix that all keys share is taken off where the rest are the network's (see `prefixes.without_prefix`). A
    `num_batches_tracked` alone may be missing, and is then left out, or be too many, and is then dropped.

    Args:
        state: Tensors by name, in any layout; for ours also the state dict of a fused network, whose
            convolutions bear the names of what they were folded from.
        arch: Name of the network.
        naming: One of `namings(arch)`. Default ours.

    Raises:
        RepnetsError: As for `recognise`; the network has no such naming; a tensor is missing, too many, or of
            another shape. Every missing and every surplus tensor is named as the file names it, less such a prefix.
    """
    layout = recognise(state)
    new = _names(arch, naming)
    state, given = _plain(state, arch, layout), state
    if problem := _misfit(state, arch, layout):
        other = identify(given)
        remedy = (
            f"They fit `{other}`: name that network"
            if other
            else "They fit no other network that repnets has either: the file is incomplete, or of another network"
        )
        raise RepnetsError(f"These {layout} weights are not those of `{arch}`: {problem}. {remedy}.")
    expected = _expected(state, arch, layout)
    return {_renamed(ours, new): state[theirs] for theirs, (ours, _) in expected.items() if theirs in state}


def block_names(keys: Iterable[str]) -> dict[str, str]:
    """Our name in the deploy form for each key of a fused network's state dict.

    A fused convolution bears the path of all that was folded into it, which is `stage1.0` or lies below it; its
    name in the deploy form is `stage1.0.weight` in every case.

    Raises:
        RepnetsError: A block has more than one convolution, so it was not folded whole.
    """
    names: dict[str, str] = {}
    taken: dict[str, str] = {}
    for key in keys:
        match = _OF_A_BLOCK.fullmatch(key)
        names[key] = name = f"{match[1]}.{match[2]}" if match else key
        if name in taken:
            raise RepnetsError(
                f"`{taken[name]}` and `{key}` are of one block, which a deploy layout has a single convolution for. "
                "The network was folded in part; fuse.json says what was not, and why."
            )
        taken[name] = key
    return names


@cache
def shapes(arch: str, form: str = "training", num_classes: int = 1000) -> Mapping[str, Size]:
    """The shape of each tensor of a network by our name for it, batch-norm statistics too; nothing is allocated."""
    import torch

    with torch.device("meta"):
        state = create_model(arch, num_classes=num_classes).state_dict()
    branched = {name: tensor.shape for name, tensor in state.items()}
    return MappingProxyType(branched if form == "training" else _folded(branched))


def _folded(branched: Mapping[str, Size]) -> dict[str, Size]:
    folded = {}
    for name, shape in branched.items():
        if main := _MAIN_WEIGHT.fullmatch(name):
            folded |= {f"{main[1]}.weight": shape, f"{main[1]}.bias": shape[:1]}
        elif ".se." in name or name.startswith(_HEAD):
            folded[name] = shape
    return folded


def _names(arch: str, naming: str) -> Mapping[str, str]:
    if naming not in namings(arch):
        having = ", ".join(name for name in MODELS if naming in namings(name)) or "none"
        raise RepnetsError(f"There is no network `{arch}` with a layout `{naming}`. Networks with one: {having}.")
    return _NAMES[arch.partition("_")[0]][naming]


def _renamed(key: str, names: Mapping[str, str]) -> str:
    """Our `key` as another project names it."""
    if (block := re.fullmatch(rf"({_BLOCK})\.(weight|bias)", key)) and _FOLDED in names:
        key = f"{block[1]}.{_FOLDED}.{block[2]}"
    for ours, theirs in names.items():
        key = re.sub(rf"(?:^|(?<=\.)){re.escape(ours)}(?=\.)", theirs, key)
    return key


def _plain(state: Mapping[str, Tensor], arch: str, layout: Layout) -> Mapping[str, Tensor]:
    """A state dict without a prefix before all its keys; that of a fused network of ours by block."""
    names = _names(arch, layout.naming)
    state = without_prefix(state, {_renamed(name, names) for name in shapes(arch, layout.form)})
    if layout != Layout("repnets", "deploy"):
        return state
    return {name: state[key] for key, name in block_names(state).items()}


def _expected(state: Mapping[str, Tensor], arch: str, layout: Layout) -> dict[str, tuple[str, Size]]:
    """For each tensor that a file must have, by its name there: our name and the shape."""
    names = _names(arch, layout.naming)
    head = state.get(_renamed(f"{_HEAD}.weight", names))
    classes = 1000 if head is None or head.dim() != 2 else len(head)
    return {_renamed(ours, names): (ours, shape) for ours, shape in shapes(arch, layout.form, classes).items()}


def _misfit(state: Mapping[str, Tensor], arch: str, layout: Layout) -> str | None:
    expected = _expected(state, arch, layout)
    return misnamed(state, expected) or misshapen(state, {name: shape for name, (_, shape) in expected.items()}, arch)
