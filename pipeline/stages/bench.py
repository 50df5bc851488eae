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

from dataclasses import replace
from pathlib import Path

from pipeline import backends
from pipeline.artifacts import documents, store
from pipeline.artifacts.bench_result import UNTIMED, BenchAccuracy, BenchResult, Measured, Reference, ReferenceResult
from pipeline.artifacts.check_result import CheckResult
from pipeline.artifacts.export_result import Manifest
from pipeline.artifacts.manifest import Unavailable
from pipeline.artifacts.profile_result import ProfileResult
from pipeline.benchmark import measurement, runners, stand_ins
from pipeline.config.stages import BenchSettings
from pipeline.report import console


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
        stand_in = None
        if unavailable and reference:  # a bench.json has all that a reference.json has
            stand_in = stand_ins.reference(documents.read(ReferenceResult, reference), list(written.forms))
        with runners.open_runner(settings, written.opened(files), files, written) as runner:
            result = _bench(settings, unavailable, written, checked, runner, stand_in)
            documents.write(places["bench"], result)
            profiled = measurement.profiled(settings.backend, result, written.shipped, runner, quantized or fused)
            documents.write(places["profile"], profiled)

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
    print(console.bench(documents.read(BenchResult, output), documents.read(ProfileResult, profile)), flush=True)


def _bench(
    settings: BenchSettings,
    unavailable: Unavailable | None,
    written: Manifest,
    checked: CheckResult,
    runner: runners.Runner,
    reference: Reference | None,
) -> BenchResult:
    if unavailable is None:
        measured = measurement.measure(runner, list(written.forms), written.input.shape, settings.bench)
    else:
        measured = Measured(dict.fromkeys(written.forms, UNTIMED), None, (), None, None)
    facts = {name: vars(form.files[form.file_name]) for name, form in written.forms.items()}
    runs = (reference or measured).runs
    return BenchResult(
        status="unavailable" if unavailable else "ok",
        reason=unavailable and unavailable.reason,
        remedy=unavailable and unavailable.remedy,
        target=written.target,
        model=written.model,
        backend=written.backend,
        precision=written.precision,
        input=written.input,
        **vars(measured) | {"forms": {name: replace(one, **facts[name]) for name, one in measured.forms.items()}},
        reference=reference,
        accuracy=BenchAccuracy(**vars(checked.accuracy), checked_by=checked.checked_by),
        conditions=runs[0].conditions if runs else None,
        files={name: tuple(form.files) for name, form in written.forms.items()},
    )
