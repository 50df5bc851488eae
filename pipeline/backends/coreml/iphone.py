"""A connected iPhone, through coremltools' experimental benchmarker: it builds, signs and starts an app on the phone.

It follows coremltools' source, and has not run on an iPhone yet. It needs a Mac with Xcode, a phone in developer
mode, unlocked and connected by cable, and a development team that Xcode can sign with.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.backends.coreml import packages, runtime
from pipeline.backends.coreml.runtime import kind_of, unit_of
from pipeline.errors import InputError, StageError
from pipeline.quiet import quiet

if TYPE_CHECKING:
    import numpy as np

Predict = Callable[[int], Awaitable[list[float]]]
"""Run a form so many times, after one run that does not count; ms of each as the phone took them."""

_Result = TypeVar("_Result")
_BLOCK = 5


def time_files(
    files: Mapping[str, Path],
    image: "np.ndarray",
    *,
    warmup_seconds: float,
    min_runs: int,
    max_seconds: float,
) -> dict[str, list[list[float]]] | None:
    """Time the forms of a network in turn on the iPhone, where their packages say so.

    Args:
        files: the .mlpackage of each form.
        image: float32 (N, 3, H, W), of the files' input shape.
        warmup_seconds: of each form, on the Mac's clock, before the first round.
        min_runs: timed runs of each form, rounded up to whole rounds of five.
        max_seconds: no round starts after this much time, once there are `min_runs`.

    Returns:
        ms of each run, by form and round, by the phone's own clock around the prediction alone: nothing of what
        passes between Mac and phone is in them. None where the packages are for the Mac: time them in this process.

    Raises:
        InputError: the packages disagree on the device; or a package takes an image.
        StageError: this is not a Mac, no iPhone is connected, or coremltools cannot reach or use it.
    """
    described = {form: packages.read(file).description for form, file in files.items()}
    devices = {form: runtime.how(one)["device"] for form, one in described.items()}
    if set(devices.values()) == {"mac"}:
        return None
    if len(set(devices.values())) > 1:
        raise InputError(f"the packages are for different devices ({devices}). Export them again, all for one.")
    _check(files, described)

    async def measure() -> dict[str, list[list[float]]]:
        device = await _connect(runtime.how(next(iter(described.values())))["development_team"])
        runs = {form: _predict(file, device, _inputs(described[form], image)) for form, file in files.items()}
        return await in_turn(runs, warmup_seconds=warmup_seconds, min_runs=min_runs, max_seconds=max_seconds)

    return _run(measure())


def plan(file: Path, image: "np.ndarray", runs: int) -> tuple[float, list[dict[str, Any]]]:
    """The phone's own plan for a package.

    Returns:
        The average run, ms; and ``output``, ``kind``, ``unit`` and ``cost`` of each operation, as
        `compute_plan.entries` gives them. coremltools shares each run out by the estimated costs; as it does not
        give these costs, they are computed from the shares.
    """
    description = packages.read(file).description
    _check({"file": file}, {"file": description})

    async def measure() -> list[Any]:
        device = await _connect(runtime.how(description)["development_team"])
        inputs = _inputs(description, image)
        return await _benchmarker(file, device).benchmark_operation_execution(
            inputs=inputs, iterations=runs, warmup=True
        )

    found = [one for one in _run(measure()) if kind_of(one.spec.type) != "const"]
    spent = [one.measurement.statistics.average if one.measurement.statistics else None for one in found]
    whole_ms = sum(ms for ms in spent if ms is not None)
    return whole_ms, [
        {
            "output": one.spec.outputs[0].name if one.spec.outputs else one.spec.type,
            "kind": kind_of(one.spec.type),
            "unit": unit_of(one.compute_device_usage),
            "cost": None if ms is None or not whole_ms else ms / whole_ms,
        }
        for one, ms in zip(found, spent, strict=True)
    ]


async def in_turn(
    forms: Mapping[str, Predict],
    *,
    warmup_seconds: float,
    min_runs: int,
    max_seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, list[list[float]]]:
    """Rounds of five runs of each form, all forms in each round, as `pipeline.benchmark.interleaved` takes them."""
    for predict in forms.values():
        begin = clock()
        await predict(1)
        while clock() - begin < warmup_seconds:
            await predict(_BLOCK)
    taken: dict[str, list[list[float]]] = {form: [] for form in forms}
    begin, rounds = clock(), 0
    while rounds * _BLOCK < min_runs or clock() - begin < max_seconds:
        for form, predict in forms.items():
            taken[form].append(await predict(_BLOCK))
        rounds += 1
    return taken


def _check(files: Mapping[str, Path], described: Mapping[str, Any]) -> None:
    for form, file in files.items():
        runtime.require(file)
        if described[form].input[0].type.WhichOneof("Type") == "imageType":
            raise InputError(
                f"{file} takes an image, and coremltools sends an iPhone arrays of numbers alone. "
                f"Export it with `normalization: false`."
            )


async def _connect(development_team: str) -> Any:
    """The one iPhone that is connected, with coremltools' runner built, signed and started on it: minutes."""
    from coremltools.models.ml_program.experimental.remote_device import AppSigningCredentials, Device, DeviceType

    phones = Device.get_connected_devices(DeviceType.IPHONE)
    if len(phones) != 1:
        seen = ", ".join(phone.name for phone in phones) or "none"
        raise StageError(
            f"this takes one connected iPhone, and there is {seen}. Connect one by cable, unlock it, trust this Mac, "
            "and turn on Settings > Privacy & Security > Developer Mode. `xcrun devicectl list devices` shows it."
        )
    credentials = AppSigningCredentials(development_team=development_team)
    return await phones[0].prepare_for_model_debugging(credentials=credentials)


def _inputs(description: Any, image: "np.ndarray") -> dict[str, Any]:
    import numpy as np

    # coremltools sends the bytes in the order of C, and the strides as they are.
    return runtime.feeder(description)(np.ascontiguousarray(image, dtype=np.float32))


def _benchmarker(file: Path, device: Any) -> Any:
    from coremltools.models.ml_program.experimental.perf_utils import MLModelBenchmarker

    return MLModelBenchmarker(runtime.load(file, is_run_here=False), device=device)


def _predict(file: Path, device: Any, inputs: dict[str, Any]) -> Predict:
    benchmarker = _benchmarker(file, device)  # it loads the package on the phone once, at the first run

    async def predict(iterations: int) -> list[float]:
        measured = await benchmarker.benchmark_predict(inputs=inputs, iterations=iterations, warmup=True)
        return list(measured.samples)

    return predict


def _run(measuring: Coroutine[Any, Any, _Result]) -> _Result:
    """Run to the end. What coremltools raises (ValueError of its own, a tool that is missing) is reported unchanged."""
    try:
        with quiet():
            return asyncio.run(measuring)
    except (StageError, InputError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        raise StageError(
            f"coremltools cannot measure on the iPhone: {text}. It takes Xcode with its command line tools, a "
            "development team that signs for this phone, and an unlocked phone; `device: mac` measures here."
        ) from error
