"""One module a runtime family: what each writes, counts and runs. `onnx` also serves as a reference."""

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType


def load(name: str) -> ModuleType:
    """The module of a backend: ``tensorrt``, ``coreml``, ``executorch``, or ``onnx``."""
    return import_module(f"{__name__}.{name}")


def file_names(name: str, forms: Sequence[str]) -> list[str]:
    """Names of all the files that a backend writes for these forms of a network, manifest.json left out."""
    backend = load(name)
    return [file.format(form=form) for form in forms for file in backend.FILES] + list(backend.EXTRAS)
