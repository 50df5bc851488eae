"""The layers of an engine: their times and kinds."""

import json
from collections.abc import Sequence
from typing import Any

MOST_MS = 1e9
"""That one inference takes less than, whatever a file says."""


def parsed(text: str) -> Any:
    """JSON. ValueError where it is none, or too deep."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def ms_of(value: Any) -> float:
    """A time, 0 or more. TypeError for what is no number, ValueError for one that no time can be."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"a time is a {type(value).__name__}")
    if not 0 <= value < MOST_MS:
        raise ValueError("a time is below 0, or not finite")
    return float(value)


def joined(times: Sequence[tuple[str, float]], information: str) -> list[dict[str, Any]]:
    """Times of layers with their kinds.

    Args:
        times: name and ms of each layer, in the order of execution.
        information: JSON of TensorRT's engine inspector, as trtexec's ``--exportLayerInfo`` writes it too.

    Returns:
        ``name``, ``kind`` and ``ms`` of each. A layer's name is that of the ONNX nodes that TensorRT made it
        of, ``conv2d + relu`` say. The kind is TensorRT's own, ``CaskConvolution`` say; empty where the engine
        was built to keep names alone.
    """
    kinds = {str(layer["Name"]): str(layer.get("LayerType", "")) for layer in _described(information)}
    return [{"name": name, "kind": kinds.get(name, ""), "ms": ms} for name, ms in times]


def _described(information: str) -> list[dict[str, Any]]:
    try:
        entries = list(parsed(information)["Layers"])
    except (ValueError, KeyError, TypeError):
        return []
    return [entry for entry in entries if isinstance(entry, dict) and "Name" in entry]
