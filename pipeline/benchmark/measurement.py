"""What is measured of exported files, and how it is told: what `bench` and `race` have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.benchmark import conditions, inputs, power, runners, statistics, sustained
from pipeline.benchmark import interleaved as timing
from pipeline.benchmark.profile import document as profile_document
from pipeline.config.targets import Bench

if TYPE_CHECKING:
    import numpy as np

    Samples = Mapping[str, Sequence[np.ndarray]]

_PROFILE_SECONDS = 2
_PROFILE_RUNS = (20, 200)
UNTIMED = dict.fromkeys(
    (
        "latency_ms",
        "warmup",
        "load_ms",
        "first_inference_ms",
        "peak_memory_bytes",
        "throughput_per_second",
        "transfer_ms",
    )
)


def measure(runner: runners.Runner, names: Sequence[str], shape: tuple[int, ...], how: Bench) -> dict[str, Any]:
    """The figures of each form, and the speed-up of the first over the second, for each number of threads.

    Args:
        runner: where the files are.
        names: of one or two of them, by their forms.
        shape: (N, C, H, W) of their input.
        how: how long, and on how many threads.

    Returns:
        ``runs``, one for each number of threads; ``forms`` and ``speedup`` of the first; ``power``, None where the
        machine does not tell it; ``sustained`` of the first form, None where `how` does not ask for it.
    """
    runs = []
    for threads in how.threads:
        run, samples = timed(runner, names, shape, threads, how)
        shipped, *baseline = names
        if baseline:
            run["speedup"] = statistics.speedup(samples[baseline[0]], samples[shipped])
        runs.append(run)
    headline = {key: runs[0][key] for key in ("forms", "speedup")}
    return {**headline, "runs": runs, **beside(runner, names, shape, how)}


def beside(runner: runners.Runner, names: Sequence[str], shape: tuple[int, ...], how: Bench) -> dict[str, Any]:
    """What each of some files does alone: ``power``, and ``sustained`` of the first; see `measure`."""
    image, threads = inputs.random_image(shape), how.threads[0]
    found = {"power": power.measure(runner, names, image, threads), "sustained": None}
    if how.sustained_seconds:
        found["sustained"] = sustained.measure(runner, names[0], image, threads, how.sustained_seconds)
    return found


def profile(backend: str, document: dict[str, Any], form: str, runner: runners.Runner, program: Path) -> dict[str, Any]:
    """profile.json: where the time of the file that ships goes, on as many threads as the headline's.

    Args:
        backend: whose runtime it is.
        document: bench.json.
        form: of the file, by its name there.
        runner: where the file is.
        program: the .pt2 that it was made of, for the names of its layers.
    """
    about = {key: document[key] for key in ("target", "model", "backend", "precision")} | {"form": form}
    if document["status"] != "ok":
        return {"status": document["status"], "reason": document["reason"], **about}
    run = document["runs"][0]
    inference_ms = run["forms"][form]["latency_ms"]["p50"]
    fewest, most = _PROFILE_RUNS
    runs = max(fewest, min(most, round(_PROFILE_SECONDS * 1000 / inference_ms)))
    shape = tuple(document["input"]["shape"])
    operations = runner.profile(form, inputs.random_image(shape), run["threads"], runs)
    if operations is None:
        reason = f"the {backend} backend does not tell where the time of an inference goes"
        return {"status": "unavailable", "reason": reason, **about}
    told = profile_document(operations, program, inference_ms)
    return {"status": "ok", "reason": None, **about, "threads": run["threads"], "runs": runs, **told}


def timed(
    runner: runners.Runner, names: Sequence[str], shape: tuple[int, ...], threads: int, how: Bench
) -> "tuple[dict[str, Any], Samples]":
    """Time files in turn on one number of threads.

    Args:
        runner: where they are.
        names: of all of them, in the order of the rounds.
        shape: (N, C, H, W) of their input.
        threads: for the runtime.
        how: how long.

    Returns:
        An entry of ``runs`` in bench.json, ``speedup`` still None; and the samples, by name.
    """
    fewest, most = how.launches
    how_long = how.model_dump(exclude={"threads", "launches", "sustained_seconds"})
    until = timing.Until(**how_long, min_launches=fewest, max_launches=most)
    image = inputs.random_image(shape)
    before = runner.snapshot()
    taken = runner.time_in_turn(image, threads, until)
    after = runner.snapshot()
    samples = taken.timing.samples_ms
    forms = {}
    for form in names:
        latency = statistics.summary(samples[form])
        forms[form] = {
            "latency_ms": latency,
            "warmup": _warmup(taken.timing.warmup[form]),
            **taken.started[form],
            "throughput_per_second": round(shape[0] * 1000 / latency["mean"], 3),
            "transfer_ms": runner.transfer_ms(form, image),
        }
    falling = [
        f"{form} was still getting faster after a warm-up of {entry['warmup']['seconds']} s; raise `warmup_seconds`"
        for form, entry in forms.items()
        if entry["warmup"] and not entry["warmup"]["steady"]
    ]
    fed = {"batch": shape[0], "image": f"random normal, seed {inputs.SEED}", **asdict(until)}
    run = {
        "threads": threads,
        "forms": forms,
        "speedup": None,
        "stopped_by": taken.timing.stopped_by,
        "conditions": conditions.describe(threads, runner.versions, before, after, falling, runner.device) | fed,
    }
    return run, samples


def _warmup(launches: Sequence[timing.WarmUp]) -> dict[str, Any] | None:
    """Over all launches; None where the runtime took the time in a way of its own, and does not tell."""
    if not launches:
        return None
    return {
        "runs": sum(one.runs for one in launches),
        "seconds": round(sum(one.seconds for one in launches), 3),
        "steady": all(one.steady for one in launches),
    }
