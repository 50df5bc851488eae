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

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline import backends
from pipeline.artifacts import store
from pipeline.artifacts.manifest import ExportSpec, Preprocessing, Unavailable, read_json, write_json
from pipeline.backends.base import Backend
from pipeline.benchmark import headline, measurement, runners
from pipeline.config.stages import BenchSettings
from pipeline.models import checkpoints, forms, programs


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
    unavailable = runners.unavailable(settings)

    def build(places: dict[str, Path], scratch: Path) -> None:
        written, checked = read_json(manifest), read_json(check)
        opened = measurement.opened(written, files, manifest)
        sources = {"checkpoint": checkpoint, "fused": fused, "quantized": quantized}
        with _runner(settings, unavailable, written, files, opened, sources, scratch) as runner:
            document = _bench(settings, unavailable, written, checked, list(opened), runner)
            write_json(places["bench"], document)
            shipped = next(iter(opened))
            write_json(
                places["profile"], measurement.profile(settings.backend, document, shipped, runner, quantized or fused)
            )

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
            "pipeline.stages.bench",
            *(backends.module_name(name) for name in (settings.backend, *_stand_ins())),
            *checkpoints.code_modules(checkpoint),
        ),
        packages=("torch", *backend.packages),
        host=runners.host(settings, unavailable),
        build=build,
    )
    print("\n".join([_headline(read_json(output)), *headline.dearest(read_json(profile))]), flush=True)


@contextmanager
def _runner(
    settings: BenchSettings,
    unavailable: Unavailable | None,
    written: dict[str, Any],
    files: list[Path],
    opened: dict[str, Path],
    sources: dict[str, Path | None],
    scratch: Path,
) -> Iterator[runners.Runner]:
    """Where the files are timed; where the target's runtime is not here, the reference's files instead."""
    if unavailable is None:
        with runners.wanted(settings, opened, files, written) as runner:
            yield runner
    else:
        stand_in = backends.stand_in(_reference_precision(written))
        yield runners.here(stand_in.name, _export_reference(stand_in, written, sources, scratch))


def _stand_ins() -> list[str]:
    return [backends.stand_in(precision).name for precision in ("fp32", "int8")]


def _reference_precision(written: dict[str, Any]) -> str:
    return "int8" if written["precision"] == "int8" else "fp32"


def _bench(
    settings: BenchSettings,
    unavailable: Unavailable | None,
    written: dict[str, Any],
    checked: dict[str, Any],
    names: list[str],
    runner: runners.Runner,
) -> dict[str, Any]:
    shape = tuple(written["input"]["shape"])
    measured, reference = measurement.measure(runner, names, shape, settings.bench), None
    if unavailable is not None:
        precision = _reference_precision(written)
        reference = {"runtime": backends.stand_in(precision).title, "precision": precision, **measured}
        measured = {"forms": dict.fromkeys(names, measurement.UNTIMED), "runs": []}
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


def _export_reference(
    backend: Backend, written: dict[str, Any], sources: dict[str, Path | None], scratch: Path
) -> dict[str, Path]:
    """The forms of the target as files of another backend: fp32, but for what the program has in int8."""
    shape = tuple(written["input"]["shape"])
    spec = ExportSpec("fp32", shape, Preprocessing.from_dict(written["preprocessing"]))
    networks = {}
    for form in written["forms"]:
        module = forms.module(form, **sources)
        networks[form] = scratch / backend.file_name(form)
        backend.export(programs.static(module, shape), [networks[form]], spec)
    return networks


def _headline(document: dict[str, Any]) -> str:
    name = f"{document['model']} on {document['target']}"
    lines = []
    if document["status"] == "ok":
        lines += headline.in_words(name, document)
    else:
        lines.append(f"{name}: {document['status']}: {document['reason']}\n  to get a figure: {document['remedy']}")
    if reference := document["reference"]:
        lines += headline.in_words(f"  reference, {reference['runtime']} {reference['precision']} here", reference)
    return "\n".join(lines + headline.warnings((reference or document)["runs"]))
