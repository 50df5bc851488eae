"""The layers of an engine: their times and kinds."""

import json
from collections.abc import Sequence
from typing import Any


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
    kinds = {layer["Name"]: layer.get("LayerType", "") for layer in _described(information)}
    return [{"name": name, "kind": kinds.get(name, ""), "ms": ms} for name, ms in times]


def _described(information: str) -> list[dict[str, Any]]:
    try:
        entries = list(json.loads(information)["Layers"])
    except (ValueError, KeyError, TypeError):
        return []
    return [entry for entry in entries if isinstance(entry, dict) and "Name" in entry]
