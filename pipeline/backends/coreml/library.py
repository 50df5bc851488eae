"""Import coremltools without the optional packages that it looks for and that are not needed here; or its protobuf
messages alone."""

import sys
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

_NOT_NEEDED = (
    "executorch",
    "libsvm",
    "sklearn",
    "tensorflow",
    "torchao",
    "torchaudio",
    "torchvision",
    "transformers",
    "xgboost",
)
"""coremltools imports each that is installed, to convert from it: seven seconds of ten."""


def load() -> ModuleType:
    """The package. Call it before any import from `coremltools`: what it looks for is decided by the first one."""
    if "coremltools" in sys.modules:
        return sys.modules["coremltools"]
    before = {name: sys.modules.get(name) for name in _NOT_NEEDED}
    sys.modules.update(dict.fromkeys(_NOT_NEEDED))  # None: an import of it fails at once
    try:
        return import_module("coremltools")
    finally:
        for name, module in before.items():
            with suppress(KeyError):
                del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


def load_messages() -> ModuleType:
    """`coremltools.proto`, which reading a package takes, in 50 ms; the package around it takes two seconds more.

    It holds the same classes before and after `load`.
    """
    name = "coremltools.proto"
    if name in sys.modules or "coremltools" in sys.modules:
        return import_module(name)
    package = ModuleType("coremltools")  # in the place of the real one, whose `__init__` imports everything
    package.__path__ = find_spec("coremltools").submodule_search_locations
    sys.modules["coremltools"] = package
    try:
        return import_module(name)
    finally:
        del sys.modules["coremltools"]
