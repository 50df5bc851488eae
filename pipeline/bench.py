"""Measure what was gained: the file that ships against its baseline, on the target's own runtime.

That is the fused file against the branched one, or in int8 the quantized one against the fused one.

Both are timed in turn (A B A B) on one random image, each in a process of its own that is started afresh a few times,
and `speedup` is the median of the paired ratios with a 95 % interval over these launches. Every number of threads in
the target's settings is measured by itself; the first is the headline. bench.json also holds load time, first
inference, memory, the accuracy that check found, and the conditions: a figure without them is worth nothing, and
little if something else was running (`busy`). profile.json tells where the time of the file that ships goes, where the
runtime can. docs/benchmarks.md says what each key means.

Where the target's runtime is not on this machine, `status` is `unavailable`, with the reason and what to do.
The same network's figures on this CPU, by ONNX Runtime in fp32 or by ExecuTorch in int8, then stand under `reference`:
they say what is gained on a CPU, and nothing about the target.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline import (
    backends,
    checkpoints,
    conditions,
    exported,
    forms,
    grounds,
    intervals,
    layers,
    measure,
    power,
    programs,
    stage,
    store,
    sustained,
)
from pipeline.config import Bench, BenchSettings
from pipeline.errors import InputError
from pipeline.manifest import ExportSpec, Preprocessing, Unavailable, read_json, write_json

_STAND_INS = {"fp32": ("onnx", "ONNX Runtime"), "int8": ("executorch", "ExecuTorch")}
_PROFILE_SECONDS = 2
_PROFILE_RUNS = (20, 200)
_UNTIMED = dict.fromkeys(
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


def run(
    settings: BenchSettings,
    *,
    manifest: Path,
    check: Path,
    files: list[Path],
    fused: Path,
    checkpoint: Path,
    output: Path,
    profile: Path,
    quantized: Path | None = None,
) -> None:
    """Measure the exported files of one network for one target, and print the speed-up.

    Args:
        settings: the backend, how long to measure, and on how many threads.
        manifest: the manifest.json that export wrote.
        check: the check.json that check wrote: these files are proven, and as accurate as it says.
        files: the exported files beside the manifest.
        fused: artifacts/<model>/fused.pt2, for the reference.
        checkpoint: artifacts/<model>/checkpoint.safetensors, for the reference's branched form.
        output: where bench.json goes.
        profile: where profile.json goes.
        quantized: artifacts/<model>/quantized.pt2, where the target is of int8.

    Raises:
        InputError: a file that the manifest names is missing, or has other content than it says.
        StageError: a runtime failed, or ended its process; what stood there before is left in place.
        DeviceError: the target's device cannot be reached or used; likewise.
    """
    backend = backends.load(settings.backend)
    unavailable = backend.unavailable() if settings.device == "local" else None
    host = {"machine": grounds.fingerprint(settings), "unavailable": unavailable and asdict(unavailable)}

    def build(places: dict[str, Path], scratch: Path) -> None:
        written, checked = read_json(manifest), read_json(check)
        opened = _opened_files(written, files, manifest)
        sources = {"checkpoint": checkpoint, "fused": fused, "quantized": quantized}
        with _ground(settings, unavailable, written, files, opened, sources, scratch) as ground:
            document = _bench(settings, unavailable, written, checked, list(opened), ground)
            write_json(places["bench"], document)
            shipped = next(iter(opened))
            write_json(places["profile"], _profile(settings.backend, document, shipped, ground, quantized or fused))

    store.cached(
        "bench",
        settings=settings.model_dump(mode="json"),
        inputs={
            "manifest": manifest,
            "check": check,
            "fused": fused,
            "quantized": quantized,
            "checkpoint": checkpoint,
        }
        | {file.name: file for file in files},
        outputs={"bench": output, "profile": profile},
        code=(
            "pipeline.bench",
            backend.__name__,
            *(f"pipeline.backends.{name}" for name, _ in _STAND_INS.values()),
            *checkpoints.code_modules(checkpoint),
        ),
        packages=("torch", *backend.PACKAGES),
        host=json.dumps(host, sort_keys=True),
        build=build,
    )
    print("\n".join([_headline(read_json(output)), *_dearest(read_json(profile))]), flush=True)


@contextmanager
def _ground(
    settings: BenchSettings,
    unavailable: Unavailable | None,
    written: dict[str, Any],
    files: list[Path],
    opened: dict[str, Path],
    sources: dict[str, Path | None],
    scratch: Path,
) -> Iterator[grounds.Ground]:
    """Where the files are timed; where the target's runtime is not here, the reference's files instead."""
    if settings.device != "local":
        beside, shape = {file.name: file for file in files}, tuple(written["input"]["shape"])
        with grounds.on_device(settings, opened, beside, shape, written["versions"]) as ground:
            yield ground
    elif unavailable is None:
        yield grounds.here(settings.backend, opened)
    else:
        stand_in, _ = _STAND_INS[_reference_precision(written)]
        yield grounds.here(stand_in, _export_reference(stand_in, written, sources, scratch))


def _reference_precision(written: dict[str, Any]) -> str:
    return "int8" if written["precision"] == "int8" else "fp32"


def _bench(
    settings: BenchSettings,
    unavailable: Unavailable | None,
    written: dict[str, Any],
    checked: dict[str, Any],
    names: list[str],
    ground: grounds.Ground,
) -> dict[str, Any]:
    shape = tuple(written["input"]["shape"])
    measured, reference = _measure(ground, names, shape, settings.bench), None
    if unavailable is not None:
        precision = _reference_precision(written)
        reference = {"runtime": _STAND_INS[precision][1], "precision": precision, **measured}
        measured = {"forms": dict.fromkeys(names, _UNTIMED), "runs": []}
        measured |= dict.fromkeys(("speedup", "power", "sustained"))
    facts = {form: next(iter(entry["files"].values())) for form, entry in written["forms"].items()}
    return {
        "status": "ok" if unavailable is None else "unavailable",
        "reason": unavailable.reason if unavailable else None,
        "remedy": unavailable.remedy if unavailable else None,
        **{key: written[key] for key in ("target", "model", "backend", "precision", "input")},
        "forms": {form: measured["forms"][form] | facts[form] for form in names},
        "speedup": measured["speedup"],
        "runs": measured["runs"],
        "power": measured["power"],
        "sustained": measured["sustained"],
        "reference": reference,
        "accuracy": {**checked["accuracy"], "checked_by": checked["checked_by"]},
        "conditions": (reference or measured)["runs"][0]["conditions"],
        "files": {form: list(entry["files"]) for form, entry in written["forms"].items()},
    }


def _opened_files(written: dict[str, Any], files: list[Path], manifest: Path) -> dict[str, Path]:
    """The file of each form that a runtime opens; all of them are what the manifest says."""
    places = {file.name: file for file in files}
    for entry in written["forms"].values():
        for name, facts in entry["files"].items():
            if name not in places:
                raise InputError(f"{manifest} names {name}, but it was not given; pass it with --files.")
            if store.digest(places[name]) != facts["sha256"]:
                raise InputError(
                    f"{places[name]} is not the file that {manifest} describes, so its figures would stand "
                    f"under a wrong name. Delete it and run again, which exports it anew."
                )
    return {form: places[next(iter(entry["files"]))] for form, entry in written["forms"].items()}


def _measure(ground: grounds.Ground, names: list[str], shape: tuple[int, ...], how: Bench) -> dict[str, Any]:
    """The figures of each form with the speed-up, for each number of threads; those of the first also at the top."""
    runs = [_measure_on(threads, ground, names, shape, how) for threads in how.threads]
    image, lasting = exported.random_image(shape), None
    drawn = power.measure(ground, names, image, how.threads[0])
    if how.sustained_seconds:
        lasting = sustained.measure(ground, names[0], image, how.threads[0], how.sustained_seconds)
    headline = {key: runs[0][key] for key in ("forms", "speedup")}
    return {**headline, "runs": runs, "power": drawn, "sustained": lasting}


def _measure_on(
    threads: int, ground: grounds.Ground, names: list[str], shape: tuple[int, ...], how: Bench
) -> dict[str, Any]:
    until = measure.Until(**how.model_dump(exclude={"threads", "sustained_seconds"}))
    image = exported.random_image(shape)
    before = ground.snapshot()
    timed = ground.time_in_turn(image, threads, until)
    after = ground.snapshot()
    samples = timed.timing.samples_ms
    shipped, *baseline = names
    figures = {}
    for form in names:
        latency = intervals.summary(samples[form])
        figures[form] = {
            "latency_ms": latency,
            "warmup": _warmup(timed.timing.warmup[form]),
            **timed.started[form],
            "throughput_per_second": round(shape[0] * 1000 / latency["mean"], 3),
            "transfer_ms": ground.transfer_ms(form, image),
        }
    falling = [
        f"{form} was still getting faster after a warm-up of {entry['warmup']['seconds']} s; raise `warmup_seconds`"
        for form, entry in figures.items()
        if entry["warmup"] and not entry["warmup"]["steady"]
    ]
    fed = {"batch": shape[0], "image": f"random normal, seed {exported.SEED}", **asdict(until)}
    held = conditions.describe(threads, ground.versions, before, after, falling, ground.device)
    return {
        "threads": threads,
        "forms": figures,
        "speedup": intervals.speedup(samples[baseline[0]], samples[shipped]) if baseline else None,
        "stopped_by": timed.timing.stopped_by,
        "conditions": held | fed,
    }


def _warmup(launches: Sequence[measure.WarmUp]) -> dict[str, Any] | None:
    """Over all launches; None where the runtime took the time in a way of its own, and does not tell."""
    if not launches:
        return None
    return {
        "runs": sum(one.runs for one in launches),
        "seconds": round(sum(one.seconds for one in launches), 3),
        "steady": all(one.steady for one in launches),
    }


def _profile(
    backend: str, document: dict[str, Any], form: str, ground: grounds.Ground, program: Path
) -> dict[str, Any]:
    """Where the time of the file that ships goes, on as many threads as the headline's."""
    about = {key: document[key] for key in ("target", "model", "backend", "precision")} | {"form": form}
    if document["status"] != "ok":
        return {"status": document["status"], "reason": document["reason"], **about}
    run = document["runs"][0]
    inference_ms = run["forms"][form]["latency_ms"]["p50"]
    fewest, most = _PROFILE_RUNS
    runs = max(fewest, min(most, round(_PROFILE_SECONDS * 1000 / inference_ms)))
    shape = tuple(document["input"]["shape"])
    operations = ground.profile(form, exported.random_image(shape), run["threads"], runs)
    if operations is None:
        reason = f"the {backend} backend does not tell where the time of an inference goes"
        return {"status": "unavailable", "reason": reason, **about}
    told = layers.document(operations, program, inference_ms)
    return {"status": "ok", "reason": None, **about, "threads": run["threads"], "runs": runs, **told}


def _export_reference(
    stand_in: str, written: dict[str, Any], sources: dict[str, Path | None], scratch: Path
) -> dict[str, Path]:
    """The forms of the target as files of another backend: fp32, but for what the program has in int8.

    ONNX Runtime's CPU is no stand-in for int8: it computes as integers only where no ReLU comes before the rounding.
    """
    backend = backends.load(stand_in)
    shape = tuple(written["input"]["shape"])
    spec = ExportSpec("fp32", shape, Preprocessing.from_dict(written["preprocessing"]))
    networks = {}
    for form in written["forms"]:
        module = forms.module(form, **sources)
        networks[form] = scratch / backend.FILES[0].format(form=form)
        backend.export(programs.static(module, shape), [networks[form]], spec)
    return networks


def _headline(document: dict[str, Any]) -> str:
    name = f"{document['model']} on {document['target']}"
    lines = []
    if document["status"] == "ok":
        lines += _figures(name, document)
    else:
        lines.append(f"{name}: {document['status']}: {document['reason']}\n  to get a figure: {document['remedy']}")
    if reference := document["reference"]:
        lines += _figures(f"  reference, {reference['runtime']} {reference['precision']} here", reference)
    warnings = {run["conditions"]["warning"] for run in (reference or document)["runs"]}
    lines += [f"  warning: {warning}" for warning in sorted(filter(None, warnings))]
    return "\n".join(lines)


def _figures(name: str, figures: dict[str, Any]) -> list[str]:
    """A line for each number of threads."""
    lines = []
    for run in figures["runs"]:
        threads = f"{run['threads']} thread{'s' * (run['threads'] > 1)}"
        at = f", {threads}" if len(figures["runs"]) > 1 else ""
        times = [f"{form} {entry['latency_ms']['p50']:.3f} ms" for form, entry in run["forms"].items()]
        lines.append(f"{name}{at}: {', '.join(times)}{_gained(*run['forms'], speedup=run['speedup'])}")
    if drawn := figures["power"]:
        each = [f"{form} {entry['energy_mj']:.3f} mJ" for form, entry in drawn["forms"].items()]
        lines.append(f"  energy of an inference above idle ({drawn['idle_mw']} mW): {', '.join(each)}")
    if lasting := figures["sustained"]:
        lines.append(
            f"  over {lasting['seconds']:g} s, {lasting['form']} went from {lasting['windows'][0]['p50_ms']:.3f} ms to "
            f"{lasting['slowdown']:.2f} times that at worst"
        )
    return lines


def _gained(shipped: str, baseline: str | None = None, *, speedup: dict[str, Any] | None) -> str:
    if speedup is None:
        return ""
    interval = ""
    if speedup["low"] is not None:
        interval = f" (95 % interval {speedup['low']:.2f} to {speedup['high']:.2f})"
    return f"; {shipped} is {speedup['median']:.2f} times as fast as {baseline}{interval}"


def _dearest(profile: dict[str, Any]) -> list[str]:
    if profile["status"] != "ok":
        return []
    head = f"  of {profile['inference_ms']:.3f} ms, all operations take {profile['sum_ms']:.3f} ms, the dearest:"
    return [head] + [
        f"  {layers.milliseconds(one):>9} ms {one['share']:6.1%}  {one['layer'] or '-'}  ({one['name']})"
        for one in layers.dearest(profile)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of this stage."""
    return stage.main(run, argv)


if __name__ == "__main__":
    sys.exit(main())
