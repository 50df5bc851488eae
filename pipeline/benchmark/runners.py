"""What runs exported files to time them: this machine, or a device; and there Python, a runner program or trtexec."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import backends, devices
from pipeline.artifacts.export_result import Manifest
from pipeline.artifacts.manifest import Unavailable
from pipeline.backends.base import Backend, BuiltFiles, Traced
from pipeline.backends.worker import client, remote
from pipeline.benchmark import conditions, interleaved, timing
from pipeline.config.stages import BenchSettings
from pipeline.devices import Device

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Runner:
    """Files where they can be timed, by the name of their form.

    Attributes:
        device: None for this machine.
        versions: of what runs there, as `conditions.describe` takes them.
        time_in_turn: (image, threads, until) -> `timing.Timed`.
        transfer_ms, profile: (form, image, ...) as those of `client`.
        alone: (form, image, threads) -> a context that gives (seconds) -> the ms of each run: one form alone.
        used_seconds: CPU time on a device of the processes that have ended; None where that is not known.
    """

    device: Device | None
    versions: conditions.Versions
    time_in_turn: Callable[..., timing.Timed]
    transfer_ms: Callable[..., dict[str, float] | None]
    profile: Callable[..., list[dict[str, Any]] | None]
    alone: Callable[..., Any]
    used_seconds: Callable[[], float | None]

    def snapshot(self) -> conditions.Snapshot:
        """The machine at this moment."""
        return conditions.snapshot(self.device, self.used_seconds())


def here(jobs: Mapping[str, client.Job]) -> Runner:
    """On this machine, each file by the runtime of its own backend."""
    used = dict.fromkeys(job.backend for job in jobs.values())
    packages = dict.fromkeys(package for name in used for package in backends.load(name).packages_of_figures)
    return _served(jobs, None, list(packages), lambda: None)


@contextmanager
def wanted(
    settings: BenchSettings, files: Mapping[str, Path], exported: Sequence[Path], written: Manifest
) -> Iterator[Runner]:
    """Where the settings say: here, or on a device, where everything is brought, and goes again at the end.

    Args:
        settings: name the backend and the device.
        files: what is timed, by form.
        exported: all that the backend wrote: these files, and what it wrote beside them.
        written: their manifest.

    Raises:
        DeviceError: the device cannot be reached or is full, or has no runtime for these files.
    """
    if settings.device == "local":
        yield here({form: client.Job(settings.backend, file) for form, file in files.items()})
        return
    device, backend = devices.parse(settings.device), backends.load(settings.backend)
    if backend.built:
        beside = next(file for file in exported if file.name in backend.extras)
        with backend.built.open(device, files, beside, written.input.shape) as built:
            yield _built(built, device, files)
        return
    with _brought(settings, device, backend, list(files.values()), written.versions) as on:
        jobs = {form: client.Job(settings.backend, file, on) for form, file in files.items()}
        runner = _served(jobs, device, on.versions, lambda: sum(on.used_seconds))
        yield runner if settings.runner is None else replace(runner, profile=partial(_traced, backend.traced, jobs))


def unavailable(settings: BenchSettings) -> Unavailable | None:
    """Why the target's runtime cannot be used on this machine; None where it can, or where a device is to run it."""
    return backends.load(settings.backend).unavailable() if settings.device == "local" else None


def _brought(
    settings: BenchSettings, device: Device, backend: Backend, files: Sequence[Path], made_by: Mapping[str, str | None]
) -> Any:
    if settings.runner is not None:
        return remote.by_runner(device, settings.runner, files)
    served = backend.served
    return remote.by_python(device, settings.device_python, served.module, served.packages, made_by, files)


def _built(built: BuiltFiles, device: Device, files: Mapping[str, Path]) -> Runner:
    """Where the device's own program takes the times, with an image of its own."""

    def time_in_turn(image: "np.ndarray", threads: int, until: interleaved.Until) -> timing.Timed:
        rounds = built.time_files(
            warmup_seconds=until.warmup_seconds, min_runs=until.min_runs, max_seconds=until.max_seconds
        )
        return timing.Timed(interleaved.taken_elsewhere(rounds), {form: dict(timing.UNKNOWN_START) for form in files})

    @contextmanager
    def alone(form: str, image: "np.ndarray", threads: int) -> Iterator[Callable[[float], list[float]]]:
        yield partial(built.time_alone, form)

    return Runner(
        device,
        built.versions,
        time_in_turn,
        lambda form, image: built.transfer_ms(form),
        lambda form, image, threads, runs: built.profile(form, runs),
        alone,
        lambda: None,
    )


def _traced(
    traced: Traced, jobs: Mapping[str, client.Job], form: str, image: "np.ndarray", threads: int, runs: int
) -> list[dict[str, Any]]:
    """A runner leaves the reading of its trace to the host."""
    dump = client.trace(jobs[form], image, threads, traced.warmup_runs + runs)
    return traced.read(dump, runs, jobs[form].file)


def _served(
    jobs: Mapping[str, client.Job],
    device: Device | None,
    versions: conditions.Versions,
    used_seconds: Callable[[], float | None],
) -> Runner:
    def time_in_turn(image: "np.ndarray", threads: int, until: interleaved.Until) -> timing.Timed:
        return timing.time_in_turn(jobs, image, threads, until=until)

    def transfer_ms(form: str, image: "np.ndarray") -> dict[str, float] | None:
        return client.transfer_ms(jobs[form], image)

    def profile(form: str, image: "np.ndarray", threads: int, runs: int) -> list[dict[str, Any]] | None:
        return client.profile(jobs[form], image, threads, runs)

    def alone(form: str, image: "np.ndarray", threads: int) -> Any:
        return timing.alone(jobs[form], image, threads)

    return Runner(device, versions, time_in_turn, transfer_ms, profile, alone, used_seconds)


def host(settings: BenchSettings, missing: Unavailable | None) -> str:
    """For the store: the machine that the files are timed on, and what `unavailable` says of the runtime.

    Raises:
        DeviceError: a device cannot be reached, or has not what runs the files.
    """
    told = {"machine": fingerprint(settings), "unavailable": missing and asdict(missing)}
    return json.dumps(told, sort_keys=True)


def fingerprint(settings: BenchSettings) -> str:
    """What makes a latency of the machine its own that files are timed on; see `conditions.fingerprint`.

    Raises:
        DeviceError: a device cannot be reached, or has not what runs the files.
    """
    if settings.device == "local":
        return conditions.fingerprint()
    device, backend = devices.parse(settings.device), backends.load(settings.backend)
    if backend.built:
        versions = backend.built.versions(device)
    elif settings.runner is not None:
        versions = remote.runner_versions(device, settings.runner)
    else:
        versions = remote.python_versions(device, settings.device_python, backend.served.packages)
    return conditions.fingerprint(versions, device)
