"""Suppress the output of third-party exporters: warnings about their internals, which a user cannot act on."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO

_LOGGERS = (
    "coremltools",  # untested versions of torch and scikit-learn; no Core ML off a Mac
    "torch.utils._pytree",  # torchao registers an enum in a way that will be an error one day
    "torch.onnx",
    "onnxscript",
)
_WARNINGS = (DeprecationWarning, FutureWarning, ResourceWarning)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress prints, deprecation warnings and log messages below ERROR; errors pass."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    try:
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            for category in _WARNINGS:
                warnings.simplefilter("ignore", category)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
