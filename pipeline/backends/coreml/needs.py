"""Requirements of Core ML on this machine and on a Mac."""

from collections.abc import Mapping

from pipeline.backends.base import Can, Requirement, cannot
from pipeline.devices.facts import Inventory

REQUIREMENTS = (Requirement("coremltools", "writes ML programs; on a Mac runs them", "build", ("coreml",)),)


def can_run_on(device: Inventory, wanted: Mapping[str, str]) -> Can:
    """See `base.Backend`: by a Mac's Python."""
    if device.machine.system != "Darwin":
        why = f"Core ML runs on Apple's systems alone, and this is {device.machine.system}."
        return cannot("not Apple's", why, "Name a Mac; for an iPhone: repnets ship --layout.")
    if "coremltools" not in device.packages:
        how = "On the Mac: python3 -m pip install coremltools."
        return cannot("no coremltools", "Its Python has no coremltools.", how)
    return Can(True, f"by Python, coremltools {device.packages['coremltools']}")
