"""The rules of a backend for target.yaml, which is validated before anything heavy is imported."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import devices
from pipeline.config.schema import Strict, where
from pipeline.errors import InputError

PYTHON = "python3"
"""The program on a device that runs files, where nothing else is named."""


class NoOptions(Strict):
    """Nothing to choose."""


@dataclass(frozen=True, kw_only=True)
class BackendRules:
    """What target.yaml may say of a target of a backend.

    Attributes:
        title: of the runtime, in words.
        precisions: that files can be exported in.
        candidates: what `precision: auto` chooses from by default.
        options: the schema of the section ``options``.
        at_least: by precision, an option and its lowest value that reads the precision: ``("minimum_deployment_target",
            "iOS17")``. Values are ordered as text.
        float_of_baseline: precision of the float baseline of an int8 target: the float that the backend is best at.
        device_programs: keys that name a program on a device which runs the files.
        not_on_devices: what to do instead, where bench cannot reach a device over ssh or adb; empty: it can.
    """

    title: str
    precisions: tuple[str, ...]
    candidates: tuple[str, ...]
    options: type[Strict] = NoOptions
    at_least: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    float_of_baseline: str = "fp32"
    device_programs: tuple[str, ...] = ()
    not_on_devices: str = ""


def hold_device(name: str, rules: BackendRules, device: str, python: str, runner: str | None, path: Path) -> None:
    """Hold what target.yaml says of the device that bench runs on.

    Raises:
        InputError: it names no device, or one that the backend cannot be timed on; a program on a device where none
            is used.
    """
    try:
        is_local = devices.parse(device).is_local
    except InputError as error:
        raise InputError(f"{where(path, ('device',))}: {error}") from None
    if rules.not_on_devices and not is_local:
        raise InputError(f"{where(path, ('device',))}: {rules.not_on_devices.format(device=device.partition(':')[0])}")
    for key, value, default in (("runner", runner, None), ("device_python", python, PYTHON)):
        if value != default and (is_local or key not in rules.device_programs):
            why = "bench runs on this machine" if is_local else f"{name} does not use one"
            raise InputError(
                f"{where(path, (key,))}: `{key}:` names a program on a device that runs the files, but {why}. Leave "
                "it out, or set `device:` to such a device."
            )
    if runner is not None and python != PYTHON:
        raise InputError(
            f"{where(path, ('runner',))}: `runner:` and `device_python:` each run the files. Leave one out."
        )
