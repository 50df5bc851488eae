"""Messages about state dicts that do not fit a network; they name every tensor."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_FEW = 8  # names; more than that are gathered under their paths
COUNTER = "num_batches_tracked"


def misnamed(found: Collection[str], wanted: Collection[str]) -> str | None:
    """Which tensors are missing and which are too many; None where there are none.

    All are named. Where they are many, `path.*` stands for all the tensors below a path. A
    `num_batches_tracked` alone may be missing or too many: it plays no part in what a network computes.

    Args:
        found: Names of the tensors that are there.
        wanted: Names of the network's tensors.
    """
    there, needed = ([name for name in names if not name.endswith(COUNTER)] for names in (found, wanted))
    missing = [name for name in needed if name not in found]
    surplus = [name for name in there if name not in wanted]
    parts = [(missing, needed, "missing"), (surplus, there, "too many")]
    return "; ".join(f"{listed(names, among)} {kind}" for names, among, kind in parts if names) or None


def misshapen(found: Mapping[str, Tensor], wanted: Mapping[str, Sequence[int]], arch: str) -> str | None:
    """The first tensor of another shape than the network's, and how many more there are; None where all fit.

    Args:
        found: Tensors by name.
        wanted: Shapes by name; a name that only one of the two has is passed over.
        arch: Name of the network.
    """
    wrong = [name for name, shape in wanted.items() if name in found and tuple(found[name].shape) != tuple(shape)]
    if not wrong:
        return None
    first, rest = wrong[0], f", and {len(wrong) - 1} more differ" if len(wrong) > 1 else ""
    return f"`{first}` has the shape {tuple(found[first].shape)}, but in `{arch}` it is {tuple(wanted[first])}{rest}"


def listed(names: Sequence[str], among: Collection[str]) -> str:
    """The names and `is` or `are`; where they are many, `path.*` stands for all those of `among` below a path."""
    shown = list(names) if len(names) <= _FEW else _gathered(names, among)
    return f"{', '.join(f'`{name}`' for name in shown)} {'is' if len(names) == 1 else 'are'}"


def _gathered(names: Sequence[str], among: Collection[str]) -> list[str]:
    """The names, or the shortest `path.*` that stands for names of the list alone."""
    kept = set(names)
    mixed = {path for name in among if name not in kept for path in _paths(name)}
    shortest = (next((f"{path}.*" for path in _paths(name) if path not in mixed), name) for name in names)
    return list(dict.fromkeys(shortest))


def _paths(name: str) -> list[str]:
    """All paths above a name, the shortest first."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]
