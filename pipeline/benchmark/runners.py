"""Runners, which time exported files: this machine, or a device by its Python, a runner program or trtexec."""

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
    """Times files on this machine or on a device; files are named by their form.

    Attributes:
        device: None for this machine.
        versions: of the software that runs the files, as `conditions.describe` takes them.
        time_in_turn: (image, threads, until) -> `timing.Timed`.
        transfer_ms, profile: (form, image, ...); see the functions of `client`.
        alone: (form, image, threads) -> a context with a function (seconds) -> ms of each run, without a pause.
        used_seconds: CPU time of the processes that have ended on a device; None if it is not known.
    """

    device: Device | None
    versions: conditions.Versions
    time_in_turn: Callable[..., timing.Timed]
    transfer_ms: Callable[..., dict[str, float] | None]
    profile: Callable[..., list[dict[str, Any]] | None]
    alone: Callable[..., Any]
    used_seconds: Callable[[], float | None]

    def snapshot(self) -> conditions.Snapshot:
        """The state of the machine now."""
        return conditions.snapshot(self.device, self.used_seconds())


def here(jobs: Mapping[str, client.Job]) -> Runner:
    """The runner of this machine: each file is run by its backend's runtime."""
    used = dict.fromkeys(job.backend for job in jobs.values())
    packages = dict.fromkeys(package for name in used for package in backends.load(name).packages_of_figures)
    return _served(jobs, None, list(packages), lambda: None)


@contextmanager
def open_runner(
    settings: BenchSettings, files: Mapping[str, Path], exported: Sequence[Path], written: Manifest
) -> Iterator[Runner]:
    """The runner that the settings name. Files are copied to a device, and removed from it at the end.

    Args:
        settings: name the backend and the device.
        files: to time, by form.
        exported: all files that the backend exported, these included.
        written: their manifest.

    Raises:
        DeviceError: the device cannot be reached, is full, or has no runtime for these files.
    """
    if settings.device == "local":
        yield here({form: client.Job(settings.backend, file) for form, file in files.items()})
        return
    device, backend = devices.parse(settings.device), backends.load(settings.backend)
    if backend.built:
        beside = next(file for file in exported if file.name in backend.extras)
        with backend.built.open(device, files, beside, written.sample_shape) as built:
            yield _built(built, device, files)
        return
    with _brought(settings, device, backend, list(files.values()), written.versions) as on:
        jobs = {form: client.Job(settings.backend, file, on) for form, file in files.items()}
        runner = _served(jobs, device, on.versions, lambda: sum(on.used_seconds))
        yield runner if settings.runner is None else replace(runner, profile=partial(_traced, backend.traced, jobs))


def unavailable(settings: BenchSettings) -> Unavailable | None:
    """Why the target's runtime cannot be used on this machine; None if it can, or if a device runs the files."""
    return backends.load(settings.backend).unavailable() if settings.device == "local" else None


def _brought(
    settings: BenchSettings, device: Device, backend: Backend, files: Sequence[Path], made_by: Mapping[str, str | None]
) -> Any:
    if settings.runner is not None:
        return remote.by_runner(device, settings.runner, files)
    served = backend.served
    return remote.by_python(device, settings.device_python, served.module, served.packages, made_by, files)


def _built(built: BuiltFiles, device: Device, files: Mapping[str, Path]) -> Runner:
    """The runner of a device whose own program builds and times the files, with an input of its own."""

    def time_in_turn(image: "np.ndarray", threads: int, until: interleaved.Until) -> timing.Timed:
        rounds = built.time_files(
            warmup_seconds=until.warmup_seconds, min_runs=until.min_runs, max_seconds=until.max_seconds
        )
        return timing.Timed(interleaved.of_rounds(rounds), {form: dict(timing.UNKNOWN_START) for form in files})

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
    """The profile of a runner program: it writes an event trace, which is read here."""
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
    """For the store's key: the machine that times the files, and why its runtime is unavailable, if so.

    Raises:
        DeviceError: a device cannot be reached, or lacks the runtime.
    """
    parts = {"machine": fingerprint(settings), "unavailable": missing and asdict(missing)}
    return json.dumps(parts, sort_keys=True)


def fingerprint(settings: BenchSettings) -> str:
    """The fingerprint of the machine that times the files; see `conditions.fingerprint`.

    Raises:
        DeviceError: a device cannot be reached, or lacks the runtime.
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
