"""Measure what was gained: the file that ships against its baseline, on the target's own runtime.

That is the fused file against the branched one, or in int8 the quantized one against the fused one.

Both are timed in turn (A B A B) on one random image, each in a process of its own that is started afresh a few times,
and `speedup` is the median of the paired ratios with a 95 % interval over these launches. Every number of threads in
the target's settings is measured by itself; the first is the headline. bench.json also holds load time, first
inference, memory, the accuracy that check found, and the conditions: a figure without them is worth nothing, and
little if something else was running (`busy`). profile.json tells where the time of the file that ships goes, where the
runtime can. docs/benchmarks.md says what each key means.

Where the target's runtime is not on this machine, nothing is measured: `status` is `unavailable`, with the reason and
what to do. The same network's figures on this CPU, which the stage `reference` measured, then stand under `reference`.
"""

from pathlib import Path
from typing import Any

from pipeline import backends
from pipeline.artifacts import documents, store
from pipeline.artifacts.check_result import CheckResult
from pipeline.artifacts.export_result import Manifest
from pipeline.artifacts.manifest import Unavailable, read_json, write_json
from pipeline.benchmark import headline, measurement, runners, stand_ins
from pipeline.config.stages import BenchSettings


def run(
    settings: BenchSettings,
    *,
    manifest: Path,
    check: Path,
    files: list[Path],
    fused: Path,
    output: Path,
    profile: Path,
    quantized: Path | None = None,
    reference: Path | None = None,
) -> None:
    """Measure the exported files of one network for one target, and print the speed-up.

    Args:
        settings: the backend, how long to measure, and on how many threads.
        manifest: the manifest.json that export wrote.
        check: the check.json that check wrote: these files are proven, and as accurate as it says.
        files: the exported files beside the manifest.
        fused: artifacts/<model>/fused.pt2, for the names of layers.
        output: where bench.json goes.
        profile: where profile.json goes.
        quantized: artifacts/<model>/quantized.pt2, where the target is of int8.
        reference: artifacts/<model>/reference-*.json, or the bench.json of a target that is the same measurement; read
            where the target's runtime is not on this machine.

    Raises:
        InputError: a file that the manifest names is missing, or has other content than it says; the reference is of
            other forms.
        StageError: a runtime failed, or ended its process; what stood there before is left in place.
        DeviceError: the target's device cannot be reached or used; likewise.
    """
    backend = backends.load(settings.backend)
    unavailable = runners.unavailable(settings)

    def build(places: dict[str, Path], _: Path) -> None:
        written, checked = documents.read(Manifest, manifest), documents.read(CheckResult, check)
        stand_in = read_json(reference) if reference else None
        with runners.wanted(settings, written.opened(files), files, written) as runner:
            document = _bench(settings, unavailable, written, checked, runner, stand_in)
            write_json(places["bench"], document)
            told = measurement.profile(settings.backend, document, written.shipped, runner, quantized or fused)
            write_json(places["profile"], told)

    store.cached(
        "bench",
        settings=settings.model_dump(mode="json"),
        inputs={"manifest": manifest, "check": check, "fused": fused, "quantized": quantized}
        | {"reference": reference if unavailable else None}
        | {file.name: file for file in files},
        outputs={"bench": output, "profile": profile},
        code=("pipeline.stages.bench", backends.module_name(settings.backend)),
        packages=("torch", *backend.packages),
        host=runners.host(settings, unavailable),
        build=build,
    )
    print("\n".join([_headline(read_json(output)), *headline.dearest(read_json(profile))]), flush=True)


def _bench(
    settings: BenchSettings,
    unavailable: Unavailable | None,
    written: Manifest,
    checked: CheckResult,
    runner: runners.Runner,
    stand_in: dict[str, Any] | None,
) -> dict[str, Any]:
    names, reference = list(written.forms), None
    if unavailable is None:
        measured = measurement.measure(runner, names, written.input.shape, settings.bench)
    else:
        measured = dict.fromkeys(stand_ins.FIGURES) | {"forms": dict.fromkeys(names, measurement.UNTIMED), "runs": []}
        reference = stand_in and stand_ins.reference(stand_in, names)
    facts = {name: documents.plain(form.files[form.file_name]) for name, form in written.forms.items()}
    runs = (reference or measured)["runs"]
    return {
        "status": "ok" if unavailable is None else "unavailable",
        "reason": unavailable.reason if unavailable else None,
        "remedy": unavailable.remedy if unavailable else None,
        "target": written.target,
        "model": written.model,
        "backend": written.backend,
        "precision": written.precision,
        "input": documents.plain(written.input),
        "forms": {form: measured["forms"][form] | facts[form] for form in names},
        "speedup": measured["speedup"],
        "runs": measured["runs"],
        "power": measured["power"],
        "sustained": measured["sustained"],
        "reference": reference,
        "accuracy": {**documents.plain(checked.accuracy), "checked_by": checked.checked_by},
        "conditions": runs[0]["conditions"] if runs else None,
        "files": {name: list(form.files) for name, form in written.forms.items()},
    }


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
