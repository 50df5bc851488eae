"""Choose the precision of a target of `precision: auto`: the fastest file that passes its gates.

Each candidate was exported and checked separately. Those that pass their gates are timed in turn (A B C A B C) on the
target's own runtime, as in `bench`. The fastest is the one with the lowest median; if the 95 % interval of the paired
ratios does not separate another candidate from it, the smaller file is chosen. If the target's runtime is not on this
machine, nothing is timed and the smallest file that passes is chosen, because another runtime cannot say which is fast
on the target.

The chosen files are written to chosen/, with their manifest.json and check.json. bench.json describes them, and lists
all candidates: accuracy, latency and size of each, why one was dropped, and which are on the Pareto front, where no
other candidate is at least as good in all three and better in one.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import backends
from pipeline.artifacts import digests, documents, evidence, store
from pipeline.artifacts.bench_result import UNTIMED, BenchResult, Run, Tried, accuracy_of
from pipeline.artifacts.check_result import CheckResult
from pipeline.artifacts.digests import Inputs
from pipeline.artifacts.export_result import FileFacts, Manifest
from pipeline.artifacts.manifest import Unavailable
from pipeline.artifacts.profile_result import ProfileResult
from pipeline.artifacts.quantize_result import QuantizeResult
from pipeline.benchmark import measurement, runners, statistics
from pipeline.config.stages import RaceSettings
from pipeline.errors import GateError, InputError
from pipeline.report import console

if TYPE_CHECKING:
    from pipeline.benchmark.measurement import Samples

_FLOATS = ("fp32", "fp16")


@dataclass(frozen=True)
class _Candidate:
    """One precision of the network.

    Attributes:
        manifest, check: paths of its manifest.json and check.json.
        written, checked: their content.
        files: all files of the manifest.
        file: the one that a runtime opens.
        lost: why it cannot be chosen; None if it passes its gates.
    """

    manifest: Path
    check: Path
    written: Manifest
    checked: CheckResult
    files: Sequence[Path]
    file: Path
    lost: str | None

    @property
    def size_bytes(self) -> int:
        return self.facts.size_bytes

    @property
    def accuracy(self) -> float | None:
        """Top-1 of the file; None if nothing here runs it."""
        return self.checked.accuracy.file

    @property
    def facts(self) -> FileFacts:
        """Size and digest of `file`."""
        return self.written.shipped_form.files[self.file.name]


def run(
    settings: RaceSettings,
    *,
    manifests: list[Path],
    checks: list[Path],
    files: list[Path],
    fused: Path,
    output: Path,
    profile: Path,
    chosen: Path,
    quantized: Path | None = None,
    report: Path | None = None,
) -> None:
    """Time the candidates of one network for one target, choose one, and print them.

    Args:
        settings: the backend, how long to measure, and on how many threads; the first number of threads decides.
        manifests: the manifest.json of each candidate.
        checks: the check.json of each, in the same order.
        files: the exported files of all; those of a candidate lie beside its manifest.
        fused: artifacts/<model>/fused.pt2, for the names of layers.
        output: where bench.json goes.
        profile: where profile.json goes.
        chosen: folder for the chosen files.
        quantized: artifacts/<model>/quantized.pt2, if int8 is a candidate.
        report: artifacts/<model>/quantize.json, likewise; it says whether int8 passed its gate.

    Raises:
        InputError: a file is missing, or not the one that its manifest describes; a check.json or quantize.json is of
            other files.
        GateError: no candidate passes its gates; names each and why. Earlier results stay in place.
        StageError: a runtime failed, or ended its process.
        DeviceError: the target's device cannot be reached or used.
    """
    backend = backends.load(settings.backend)
    unavailable = runners.unavailable(settings)
    programs = {"fused": fused, "quantized": quantized}
    exported = {f"{path.parent.name}/{path.name}": path for path in (*manifests, *checks, *files)}
    inputs = Inputs(programs | {"report": report} | exported)

    def build(places: dict[str, Path], _: Path) -> None:
        candidates = _candidates(manifests, checks, files, programs, report)
        passed = _passed(settings, candidates)
        opened, written = {name: one.file for name, one in passed.items()}, next(iter(passed.values())).written
        with runners.open_runner(settings, opened, files, written) as runner:
            best, result = _race(settings, candidates, passed, unavailable, runner, inputs.sha256)
            documents.write(places["bench"], result)
            program = programs[passed[best].written.shipped] or fused
            subjects = {"bench": digests.digest(places["bench"])}
            profiled = measurement.profiled(settings.backend, result, best, runner, program, subjects)
            documents.write(places["profile"], profiled)
        _copy(passed[best], places["chosen"])

    store.cached(
        "race",
        settings=settings.model_dump(mode="json"),
        inputs=inputs,
        outputs={"bench": output, "profile": profile, "chosen": chosen},
        code=("pipeline.stages.race", backends.module_name(settings.backend)),
        packages=("torch", *backend.packages),
        host=runners.host(settings, unavailable),
        build=build,
    )
    print(console.race(documents.read(BenchResult, output), documents.read(ProfileResult, profile)), flush=True)


def fastest(size_bytes: Mapping[str, int], samples: "Samples") -> str:
    """The smallest of the candidates whose latency is not separable from the lowest median.

    Args:
        size_bytes: of each candidate's file.
        samples: latencies of each, measured in turn; see `benchmark.statistics`.
    """
    lowest = min(size_bytes, key=lambda name: statistics.percentile(samples[name], 50)["value"])

    def is_as_fast(name: str) -> bool:
        gained = statistics.speedup(samples[name], samples[lowest])
        return name == lowest or (gained["low"] is not None and gained["low"] <= 1)

    return min(filter(is_as_fast, size_bytes), key=size_bytes.__getitem__)


def on_front(rows: Sequence[Tried]) -> list[str]:
    """The Pareto front: precisions for which no other is at least as good in all figures, and better in one.

    Args:
        rows: ``accuracy`` and ``p50_ms`` are None in all rows alike.
    """
    figures_of = {row.precision: (-(row.accuracy or 0), row.p50_ms or 0, row.size_bytes) for row in rows}

    def is_beaten(own: tuple[float, ...]) -> bool:
        return any(
            other != own and all(theirs <= mine for theirs, mine in zip(other, own, strict=True))
            for other in figures_of.values()
        )

    return [name for name, own in figures_of.items() if not is_beaten(own)]


def _candidates(
    manifests: list[Path],
    checks: list[Path],
    files: list[Path],
    programs: Mapping[str, Path | None],
    report: Path | None,
) -> dict[str, _Candidate]:
    """By precision. Each check.json must be of its manifest, files and programs; quantize.json of the programs."""
    if [path.parent for path in manifests] != [path.parent for path in checks]:
        raise InputError("--manifests and --checks must name the same folders in the same order.")
    found = {}
    for manifest, check in zip(manifests, checks, strict=True):
        own = [file for file in files if file.parent == manifest.parent]
        inputs = Inputs({"manifest": manifest, **programs, **{file.name: file for file in own}})
        written = documents.read(Manifest, manifest)
        used = [name for name in programs if name == "fused" or name in written.forms]
        evidence.require(written, manifest, inputs, *used)
        file = written.opened(own)[written.shipped]
        checked = evidence.read(CheckResult, check, inputs, "manifest", *used, *(file.name for file in own))
        lost = checked.reason
        if written.precision == "int8" and report:
            lost = evidence.read(QuantizeResult, report, inputs, "fused", "quantized").reason or lost
        found[written.precision] = _Candidate(manifest, check, written, checked, own, file, lost)
    return found


def _passed(settings: RaceSettings, candidates: Mapping[str, _Candidate]) -> dict[str, _Candidate]:
    """The candidates that pass their gates, at least one."""
    passed = {name: one for name, one in candidates.items() if one.lost is None}
    if not passed:
        reasons = " ".join(f"{name}: {one.lost}" for name, one in candidates.items())
        raise GateError(
            f"no precision of {settings.model} holds its gates on {settings.target}, so there is none to choose. "
            f"{reasons} Add another to `candidates`, or allow a larger `check.max_metric_drop`."
        )
    return passed


def _race(
    settings: RaceSettings,
    candidates: Mapping[str, _Candidate],
    passed: Mapping[str, _Candidate],
    unavailable: Unavailable | None,
    runner: runners.Runner,
    subjects: Mapping[str, str],
) -> tuple[str, BenchResult]:
    """The chosen precision, and its bench.json."""
    runs: list[Run] = []
    shape = next(iter(passed.values())).written.sample_shape
    if unavailable is None:
        limits = measurement.until(settings.bench)
        taken = [measurement.timed(runner, list(passed), shape, n, limits) for n in settings.bench.threads]
        best = fastest({name: one.size_bytes for name, one in passed.items()}, taken[0][1])
    else:
        taken, best = [], min(passed, key=lambda name: passed[name].size_bytes)
    baseline = _baseline(best, passed)
    order = [best, *filter(None, [baseline]), *(name for name in passed if name not in (best, baseline))]
    for run, samples in taken:
        speedup = measurement.speedup(samples, best, baseline) if baseline else None
        runs.append(replace(run, forms={name: run.forms[name] for name in order}, speedup=speedup))
    power, sustained = measurement.power_and_sustained(runner, order, shape, settings.bench) if runs else (None, None)
    winner, timed = passed[best], runs[0].forms if runs else dict.fromkeys(order, UNTIMED)
    return best, BenchResult(
        status="unavailable" if unavailable else "ok",
        reason=unavailable and unavailable.reason,
        remedy=unavailable and unavailable.remedy,
        subjects=subjects,
        target=winner.written.target,
        model=winner.written.model,
        backend=winner.written.backend,
        precision=winner.written.precision,
        input=winner.written.input,
        further_inputs=winner.written.further_inputs,
        chosen=best,
        chosen_by="latency" if runs else "size",
        tried=_tried(candidates, runs),
        forms={name: replace(timed[name], **vars(passed[name].facts)) for name in order},
        speedup=runs[0].speedup if runs else None,
        runs=tuple(runs),
        power=power,
        sustained=sustained,
        reference=None,
        accuracy=accuracy_of(winner.checked),
        conditions=runs[0].conditions if runs else None,
        files={name: tuple(passed[name].written.shipped_form.files) for name in order},
    )


def _baseline(best: str, passed: Mapping[str, _Candidate]) -> str | None:
    """The float candidate that the speed-up is over; None if that is the chosen one, or there is none."""
    floats = [name for name in _FLOATS if name in passed]
    return floats[0] if floats and floats[0] != best else None


def _tried(candidates: Mapping[str, _Candidate], runs: Sequence[Run]) -> tuple[Tried, ...]:
    """A row for each candidate, in the order of target.yaml."""
    rows = []
    for name, one in candidates.items():
        timed = runs[0].forms.get(name) if runs else None
        p50_ms = timed.latency_ms.p50 if timed else None
        rows.append(Tried(name, "lost" if one.lost else "ok", one.lost, one.accuracy, p50_ms, one.size_bytes))
    front = on_front([row for row in rows if row.status == "ok"])
    return tuple(replace(row, pareto=row.precision in front) for row in rows)


def _copy(winner: _Candidate, folder: Path) -> None:
    folder.mkdir()
    for path in (*winner.files, winner.manifest, winner.check):
        if path.is_dir():
            shutil.copytree(path, folder / path.name, ignore=lambda _, names: {digests.TIME_STAMP} & set(names))
        else:
            shutil.copy(path, folder / path.name)
