"""Structurally reparameterized CNNs: networks in training form, and one engine that folds any of them.

>>> import repnets, torch
>>> model = repnets.create_model("toy", num_classes=10).eval()
>>> result = repnets.fuse(model, torch.zeros(1, 3, 96, 96))
>>> print(result.report)

Names are loaded on first use, so `import repnets` and `import repnets.networks` do not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from repnets.batch_norms import Finding, bn_health, recalibrated
    from repnets.drawing.svg import draw
    from repnets.errors import RepnetsError
    from repnets.expansion.expand import expand
    from repnets.fusion.capture import capture
    from repnets.fusion.engine import FuseResult, fuse
    from repnets.fusion.report import FuseReport
    from repnets.networks import create_model, list_models
    from repnets.quantization.forecast import Forecast, forecast

_HOMES = {
    "Finding": "repnets.batch_norms",
    "Forecast": "repnets.quantization.forecast",
    "FuseReport": "repnets.fusion.report",
    "FuseResult": "repnets.fusion.engine",
    "RepnetsError": "repnets.errors",
    "bn_health": "repnets.batch_norms",
    "capture": "repnets.fusion.capture",
    "create_model": "repnets.networks",
    "draw": "repnets.drawing.svg",
    "expand": "repnets.expansion.expand",
    "forecast": "repnets.quantization.forecast",
    "fuse": "repnets.fusion.engine",
    "list_models": "repnets.networks",
    "recalibrated": "repnets.batch_norms",
}

__all__ = [
    "Finding",
    "Forecast",
    "FuseReport",
    "FuseResult",
    "RepnetsError",
    "bn_health",
    "capture",
    "create_model",
    "draw",
    "expand",
    "forecast",
    "fuse",
    "list_models",
    "recalibrated",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
