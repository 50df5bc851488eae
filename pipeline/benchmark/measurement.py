"""The measurements that `bench`, `race`, `reference` and `repnets bench` share, as typed results."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.artifacts import documents
from pipeline.artifacts.bench_result import (
    BenchResult,
    Conditions,
    Figures,
    Latency,
    Measured,
    Power,
    Run,
    Speedup,
    Sustained,
    WarmUp,
)
from pipeline.artifacts.profile_result import ProfileResult
from pipeline.benchmark import conditions, inputs, power, profile, runners, statistics, sustained
from pipeline.benchmark import interleaved as timing
from pipeline.config.targets import Bench

if TYPE_CHECKING:
    import numpy as np

    Samples = Mapping[str, Sequence[np.ndarray]]

_PROFILE_SECONDS = 2
_PROFILE_RUNS = (20, 200)


def measure(runner: runners.Runner, names: Sequence[str], shape: tuple[int, ...], how: Bench) -> Measured:
    """The figures of each form, and the speed-up of the first over the second, for each number of threads.

    Args:
        runner: times the files.
        names: the forms, one or two.
        shape: (N, C, H, W) of their input.
        how: how long, and on how many threads.
    """
    runs, limits = [], until(how)
    for threads in how.threads:
        run, samples = timed(runner, names, shape, threads, limits)
        shipped, *baseline = names
        if baseline:
            run = replace(run, speedup=speedup(samples, shipped, baseline[0]))
        runs.append(run)
    return Measured(runs[0].forms, runs[0].speedup, tuple(runs), *power_and_sustained(runner, names, shape, how))


def speedup(samples: "Samples", shipped: str, baseline: str) -> Speedup:
    """How many times as fast one file is as another that was timed in turn with it."""
    return documents.of(Speedup, statistics.speedup(samples[baseline], samples[shipped]))


def power_and_sustained(
    runner: runners.Runner, names: Sequence[str], shape: tuple[int, ...], how: Bench
) -> tuple[Power | None, Sustained | None]:
    """Power of each form while it runs alone, and sustained latency of the first; see `Measured`."""
    image, threads = inputs.random_image(shape), how.threads[0]
    power_drawn, lasting = power.measure(runner, names, image, threads), None
    if how.sustained_seconds:
        lasting = sustained.measure(runner, names[0], image, threads, how.sustained_seconds)
    return power_drawn and documents.of(Power, power_drawn), lasting and documents.of(Sustained, lasting)


def profiled(
    backend: str,
    bench: BenchResult,
    form: str,
    runner: runners.Runner,
    program: Path,
    subjects: Mapping[str, str],
) -> ProfileResult:
    """The profile of the file that ships, on the headline's number of threads.

    Args:
        backend: of the runtime.
        bench: the benchmark of the file.
        form: that ships.
        runner: runs the file.
        program: the .pt2 that the file was exported from, for the names of its layers.
        subjects: sha256 of the bench.json.
    """
    of_file = subjects, bench.target, bench.model, bench.backend, bench.precision, form
    if bench.status != "ok":
        return ProfileResult(bench.status, bench.reason, *of_file)
    run = bench.runs[0]
    inference_ms = run.forms[form].latency_ms.p50
    fewest, most = _PROFILE_RUNS
    runs = max(fewest, min(most, round(_PROFILE_SECONDS * 1000 / inference_ms)))
    operations = runner.profile(form, inputs.random_image(bench.sample_shape), run.threads, runs)
    if operations is None:
        reason = f"the {backend} backend does not tell where the time of an inference goes"
        return ProfileResult("unavailable", reason, *of_file)
    found = profile.named(operations, program, inference_ms)
    return ProfileResult("ok", None, *of_file, run.threads, runs, **vars(found))


def until(how: Bench) -> timing.Until:
    """When a measurement stops, by the settings of a target."""
    fewest, most = how.launches
    limits = how.model_dump(exclude={"threads", "launches", "sustained_seconds"})
    return timing.Until(**limits, min_launches=fewest, max_launches=most)


def timed(
    runner: runners.Runner, names: Sequence[str], shape: tuple[int, ...], threads: int, limits: timing.Until
) -> "tuple[Run, Samples]":
    """Time files in turn on one number of threads.

    Args:
        runner: times the files.
        names: the forms, in the order of the rounds.
        shape: (N, C, H, W) of their input.
        threads: for the runtime.
        limits: when to stop.

    Returns:
        A run without a speed-up; and the samples, by name.
    """
    image = inputs.random_image(shape)
    before = runner.snapshot()
    taken = runner.time_in_turn(image, threads, limits)
    after = runner.snapshot()
    samples = taken.timing.samples_ms
    forms = {}
    for form in names:
        latency = documents.of(Latency, statistics.summary(samples[form]))
        forms[form] = Figures(
            latency_ms=latency,
            warmup=_warmup(taken.timing.warmup[form]),
            **taken.started[form],
            throughput_per_second=round(shape[0] * 1000 / latency.mean, 3),
            transfer_ms=runner.transfer_ms(form, image),
        )
    falling = [
        f"{form} was still getting faster after a warm-up of {entry.warmup.seconds} s; raise `warmup_seconds`, "
        "or bench again when the machine is quiet"
        for form, entry in forms.items()
        if entry.warmup and not entry.warmup.steady
    ]
    fed = {"batch": shape[0], "image": f"random normal, seed {inputs.SEED}", **asdict(limits)}
    measured_under = conditions.describe(threads, runner.versions, before, after, falling, runner.device) | fed
    return Run(threads, forms, None, taken.timing.stopped_by, documents.of(Conditions, measured_under)), samples


def _warmup(launches: Sequence[timing.WarmUp]) -> WarmUp | None:
    """The warm-up over all launches; None if the runtime measures by itself."""
    if not launches:
        return None
    return WarmUp(
        runs=sum(one.runs for one in launches),
        seconds=round(sum(one.seconds for one in launches), 3),
        steady=all(one.steady for one in launches),
    )
