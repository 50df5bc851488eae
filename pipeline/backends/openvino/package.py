"""OpenVINO's Python package, as every part of this backend imports it."""

import sys
from types import ModuleType

from pipeline.quiet import quiet


def openvino() -> ModuleType:
    """The package, without its telemetry: its converter would report each conversion to a web service of its makers.

    Raises:
        ImportError: it is not installed.
    """
    # an import of what is None here fails, and OpenVINO then has a stub in its place
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    with quiet():
        import openvino
    return openvino
