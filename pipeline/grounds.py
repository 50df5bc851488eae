"""Where exported files are timed: on this machine, or on a device; and there by Python, a runner or trtexec."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import backends, conditions, devices, measure, remote, worker
from pipeline.config import BenchSettings
from pipeline.devices import Device
from pipeline.manifest import Unavailable

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Ground:
    """Files where they can be timed, by the name of their form.

    Attributes:
        device: None for this machine.
        versions: of what runs there, as `conditions.describe` takes them.
        time_in_turn: (image, threads, until) -> `worker.Timed`.
        transfer_ms, profile: (form, image, ...) as those of `worker`.
        alone: (form, image, threads) -> a context that gives (seconds) -> the ms of each run: one form alone.
        used_seconds: CPU time on a device of the processes that have ended; None where that is not known.
    """

    device: Device | None
    versions: conditions.Versions
    time_in_turn: Callable[..., worker.Timed]
    transfer_ms: Callable[..., dict[str, float] | None]
    profile: Callable[..., list[dict[str, Any]] | None]
    alone: Callable[..., Any]
    used_seconds: Callable[[], float | None]

    def snapshot(self) -> conditions.Snapshot:
        """The machine at this moment."""
        return conditions.snapshot(self.device, self.used_seconds())


def here(backend: str, files: Mapping[str, Path]) -> Ground:
    """On this machine, each file by the backend's own runtime."""
    jobs = {form: worker.Job(backend, file) for form, file in files.items()}
    return _served(jobs, None, backends.packages_of_figures(backend), lambda: None)


@contextmanager
def on_device(
    settings: BenchSettings, files: Mapping[str, Path], made_by: Mapping[str, str | None]
) -> Iterator[Ground]:
    """On the device that the settings name; everything is brought there, and goes again at the end.

    Args:
        settings: their `device` is not ``local``.
        files: the exported files.
        made_by: versions of what exported them.

    Raises:
        DeviceError: the device cannot be reached or is full, or has no runtime for these files.
    """
    device, backend = devices.parse(settings.device), backends.load(settings.backend)
    with _brought(settings, device, backend, list(files.values()), made_by) as on:
        jobs = {form: worker.Job(settings.backend, file, on) for form, file in files.items()}
        yield _served(jobs, device, on.versions, lambda: sum(on.used_seconds))


@contextmanager
def wanted(settings: BenchSettings, files: Mapping[str, Path], made_by: Mapping[str, str | None]) -> Iterator[Ground]:
    """Where the settings say: on this machine, or `on_device`, whose parameters and errors these are."""
    if settings.device == "local":
        yield here(settings.backend, files)
    else:
        with on_device(settings, files, made_by) as ground:
            yield ground


def unavailable(settings: BenchSettings) -> Unavailable | None:
    """Why the target's runtime cannot be used on this machine; None where it can, or where a device is to run it."""
    return backends.load(settings.backend).unavailable() if settings.device == "local" else None


def _brought(
    settings: BenchSettings, device: Device, backend: Any, files: Sequence[Path], made_by: Mapping[str, str | None]
) -> Any:
    if settings.runner is not None:
        return remote.by_runner(device, settings.runner, files)
    return remote.by_python(device, settings.device_python, backend.SERVED_BY, backend.PACKAGES, made_by, files)


def _served(
    jobs: Mapping[str, worker.Job],
    device: Device | None,
    versions: conditions.Versions,
    used_seconds: Callable[[], float | None],
) -> Ground:
    def time_in_turn(image: "np.ndarray", threads: int, until: measure.Until) -> worker.Timed:
        return worker.time_in_turn(jobs, image, threads, until=until)

    def transfer_ms(form: str, image: "np.ndarray") -> dict[str, float] | None:
        return worker.transfer_ms(jobs[form], image)

    def profile(form: str, image: "np.ndarray", threads: int, runs: int) -> list[dict[str, Any]] | None:
        return worker.profile(jobs[form], image, threads, runs)

    def alone(form: str, image: "np.ndarray", threads: int) -> Any:
        return worker.alone(jobs[form], image, threads)

    return Ground(device, versions, time_in_turn, transfer_ms, profile, alone, used_seconds)


def fingerprint(settings: BenchSettings) -> str:
    """What makes a latency of the machine its own that files are timed on; see `conditions.fingerprint`.

    Raises:
        DeviceError: a device cannot be reached, or has not what runs the files.
    """
    if settings.device == "local":
        return conditions.fingerprint()
    device, backend = devices.parse(settings.device), backends.load(settings.backend)
    if settings.runner is not None:
        versions = remote.runner_versions(device, settings.runner)
    else:
        versions = remote.python_versions(device, settings.device_python, backend.PACKAGES)
    return conditions.fingerprint(versions, device)
