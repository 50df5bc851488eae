"""Core ML: an ML program (.mlpackage) for iPhone, iPad and Mac, written on any system."""

import platform

from pipeline.backends.coreml.converting import export
from pipeline.backends.coreml.packages import census
from pipeline.backends.coreml.running import open_session, unavailable

__all__ = ["census", "export", "open_check_session", "open_session", "unavailable"]

FILES: tuple[str, ...] = ("{form}.mlpackage",)
EXTRAS: tuple[str, ...] = ()
PACKAGES: tuple[str, ...] = ("torch", "coremltools")
CHECKED_BY = "Core ML" if platform.system() == "Darwin" else None

open_check_session = open_session


def host() -> None:
    """The files depend on no machine: any machine's will do for all."""
