"""Measure the speed-up of the file that ships over its baseline, on the target's own runtime.

That is the fused file over the branched one, or for int8 the quantized file over the fused one.

Both are timed in turn (A B A B) on one random image, each in a process of its own that is started afresh several times.
`speedup` is the median of the paired ratios, with a 95 % interval over these launches. Each number of threads in the
target's settings is measured separately; the first gives the headline figures. bench.json also has load time, first
inference, memory, the accuracy that check found, and the conditions of the measurement; `busy` says whether other
programs kept the machine busy. profile.json has the time of each layer of the file that ships, if the runtime has a
profiler. docs/benchmarks.md says what each key means.

If the target's runtime is not on this machine, nothing is measured: `status` is `unavailable`, with the reason and the
remedy. The figures of the same network on this CPU, from the stage `reference`, are then given under `reference`.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pipeline import backends
from pipeline.artifacts import digests, documents, evidence, store
from pipeline.artifacts.bench_result import UNTIMED, BenchResult, Measured, Reference, ReferenceResult, accuracy_of
from pipeline.artifacts.check_result import CheckResult
from pipeline.artifacts.digests import Inputs
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
        check: the check.json that check wrote: the gate on these files, and their accuracy.
        files: the exported files beside the manifest.
        fused: artifacts/<model>/fused.pt2, for the names of layers.
        output: where bench.json goes.
        profile: where profile.json goes.
        quantized: artifacts/<model>/quantized.pt2, for a target of int8.
        reference: artifacts/<model>/reference-*.json, or the bench.json of a target that is the same measurement; read
            if the target's runtime is not on this machine.

    Raises:
        InputError: a file of the manifest is missing or has other content; check.json or the reference is of other
            files; the check was not passed; the reference is of other forms.
        StageError: a runtime failed, or ended its process; earlier results stay in place.
        DeviceError: the target's device cannot be reached or used; likewise.
    """
    backend = backends.load(settings.backend)
    unavailable = runners.unavailable(settings)
    programs = {"fused": fused, "quantized": quantized}
    exported = {file.name: file for file in files}
    inputs = Inputs(
        {"manifest": manifest, "check": check, "reference": reference if unavailable else None} | programs | exported
    )

    def build(places: dict[str, Path], _: Path) -> None:
        written = evidence.read(Manifest, manifest, inputs, *programs)
        opened = written.opened(files)
        checked = evidence.read(CheckResult, check, inputs, "manifest", *programs, *exported)
        checked.require_passed(check)
        stand_in = None
        if unavailable and reference:  # a bench.json has all that a reference.json has
            figures = evidence.read(ReferenceResult, reference, inputs, *programs)
            stand_in = stand_ins.reference(figures, list(written.forms))
        with runners.open_runner(settings, opened, files, written) as runner:
            result = _bench(settings, unavailable, written, checked, runner, stand_in, inputs.sha256)
            documents.write(places["bench"], result)
            subjects = {"bench": digests.digest(places["bench"])}
            program = quantized or fused
            profiled = measurement.profiled(settings.backend, result, written.shipped, runner, program, subjects)
            documents.write(places["profile"], profiled)

    store.cached(
        "bench",
        settings=settings.model_dump(mode="json"),
        inputs=inputs,
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
    subjects: Mapping[str, str],
) -> BenchResult:
    if unavailable is None:
        measured = measurement.measure(runner, list(written.forms), written.sample_shape, settings.bench)
    else:
        measured = Measured(dict.fromkeys(written.forms, UNTIMED), None, (), None, None)
    facts = {name: vars(form.files[form.file_name]) for name, form in written.forms.items()}
    runs = (reference or measured).runs
    return BenchResult(
        status="unavailable" if unavailable else "ok",
        reason=unavailable and unavailable.reason,
        remedy=unavailable and unavailable.remedy,
        subjects=subjects,
        target=written.target,
        model=written.model,
        backend=written.backend,
        precision=written.precision,
        input=written.input,
        further_inputs=written.further_inputs,
        **vars(measured) | {"forms": {name: replace(one, **facts[name]) for name, one in measured.forms.items()}},
        reference=reference,
        accuracy=accuracy_of(checked),
        conditions=runs[0].conditions if runs else None,
        files={name: tuple(form.files) for name, form in written.forms.items()},
    )
