"""The prefix that wrappers put before every key of a state dict: `module.`, `_orig_mod.`, `model.` and so on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeVar

T = TypeVar("T")


def without_prefix(state: Mapping[str, T], wanted: Collection[str]) -> dict[str, T]:
    """A state dict less the prefix that keeps its keys from being a network's.

    Any dotted prefix that all keys share may go, also one of several parts. The cut that leaves the most names of the
    network is taken, the shortest of several. At most one cut can leave exactly the network's names; keys that a
    network itself begins alike stay whole.

    Args:
        state: Values by name.
        wanted: Names of the network's tensors.
    """
    first = next(iter(state), "")
    dots = (place + 1 for place, letter in enumerate(first) if letter == ".")
    ends = [0, *(end for end in dots if all(key.startswith(first[:end]) for key in state))]
    end = max(ends, key=lambda end: sum(key[end:] in wanted for key in state))
    return {key[end:]: value for key, value in state.items()}
