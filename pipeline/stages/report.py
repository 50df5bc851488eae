"""One page over every model and target: what was gained, what it cost, and what could not be measured here."""

from pathlib import Path

from pipeline.artifacts import digests, documents, evidence
from pipeline.artifacts.atomic import replacing
from pipeline.artifacts.bench_result import BenchResult, TargetBench
from pipeline.artifacts.failures import Failures
from pipeline.artifacts.fuse_result import FuseResult
from pipeline.artifacts.profile_result import ProfileResult
from pipeline.config.stages import NoSettings
from pipeline.errors import InputError
from pipeline.report import page


def run(
    settings: NoSettings,
    *,
    output: Path,
    benches: list[Path] = (),
    profiles: list[Path] = (),
    fuses: list[Path] = (),
    failures: Path | None = None,
) -> None:
    """Write the report.

    Args:
        settings: none.
        benches: targets/<target>/bench.json of every target; or targets/<target>/<model>/bench.json of some models.
        output: where report.md goes.
        profiles: targets/<target>/<model>/profile.json of every target and model, for the slowest layers.
        fuses: artifacts/<model>/fuse.json of every model, for the forecast of int8.
        failures: logs/failed.json, where something failed: a row and a reason for each model and target that lacks.

    Raises:
        InputError: there is neither a benchmark nor a failure; a file is missing, damaged or was edited; a
            profile is of another benchmark, or a fuse.json of another fused.pt2 than a benchmark.
    """
    found = [(path, *one) for path in benches for one in _results(path)]
    results = sorted((result for _, result, _ in found), key=_model_and_target)
    measured = {_model_and_target(result): sha256 for _, result, sha256 in found}
    profiled = [(path, documents.read(ProfileResult, path)) for path in profiles]
    for path, profile in profiled:
        if _model_and_target(profile) in measured:
            evidence.require_same(profile, path, "bench", measured[_model_and_target(profile)])
    fused = {path.parent.name: documents.read(FuseResult, path) for path in sorted(fuses)}
    for path, result, _ in found:
        if result.model in fused:
            evidence.require_same(result, path, "fused", fused[result.model].subjects.get("fused"))
    failed = documents.read(Failures, failures) if failures else None
    if not results and not failed:
        raise InputError("report: there is no --benches and no --failures, so there is nothing to report.")
    ordered = sorted((profile for _, profile in profiled), key=_model_and_target)
    forecasts = {model: one.forecast for model, one in fused.items()}
    with replacing(output) as fresh:
        fresh.write_text(page.render(results, ordered, forecasts, failed))


def _results(path: Path) -> list[tuple[BenchResult, str | None]]:
    """The benchmarks in a file of one target or of one model, and the sha256 of each one's bench.json."""
    found = documents.read_either(TargetBench, BenchResult, path)
    if isinstance(found, BenchResult):
        return [(found, digests.digest(path))]
    return [(result, found.subjects.get(model)) for model, result in found.models.items()]


def _model_and_target(result: BenchResult | ProfileResult) -> tuple[str, str]:
    return result.model, result.target
