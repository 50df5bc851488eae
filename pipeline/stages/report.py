"""What was gained, what it cost, and what could not be measured here, over every model and target.

Writes report.md, to read on a terminal; and report.html, one page with charts that needs nothing but itself.
"""

from collections.abc import Sequence
from pathlib import Path

from pipeline.artifacts import digests, documents, evidence, training_metrics
from pipeline.artifacts.atomic import replacing
from pipeline.artifacts.bench_result import BenchResult, TargetBench
from pipeline.artifacts.check_result import CheckResult
from pipeline.artifacts.digests import Inputs
from pipeline.artifacts.export_result import Manifest
from pipeline.artifacts.failures import Failures
from pipeline.artifacts.fuse_result import FuseResult
from pipeline.artifacts.profile_result import ProfileResult
from pipeline.artifacts.quantize_result import QuantizeResult
from pipeline.artifacts.verify_result import VerifyResult
from pipeline.config.stages import NoSettings
from pipeline.errors import InputError
from pipeline.report import markdown
from pipeline.report.page import render
from pipeline.report.page.built import Built, Exported, Model


def run(
    settings: NoSettings,
    *,
    output: Path,
    benches: list[Path] = (),
    profiles: list[Path] = (),
    fuses: list[Path] = (),
    failures: Path | None = None,
    page: Path | None = None,
    verifies: list[Path] = (),
    quantizes: list[Path] = (),
    manifests: list[Path] = (),
    checks: list[Path] = (),
    metrics: list[Path] = (),
    pictures: list[Path] = (),
) -> None:
    """Write the report.

    Args:
        settings: none.
        benches: targets/<target>/bench.json of every target; or targets/<target>/<model>/bench.json of some models.
        output: where report.md goes.
        profiles: targets/<target>/<model>/profile.json of every target and model, for the time of layers.
        fuses: artifacts/<model>/fuse.json of every model.
        failures: logs/failed.json, where something failed: a row and a reason for each model and target that lacks.
        page: where report.html goes; None: there is none. The rest is for it alone.
        verifies: artifacts/<model>/verify.json of every model.
        quantizes: artifacts/<model>/quantize.json of the models that have one.
        manifests: manifest.json of all exported files.
        checks: check.json of the same, each in the folder of its manifest.
        metrics: artifacts/<model>/metrics.jsonl of the models that were trained.
        pictures: artifacts/<model>/structure.svg and samples.png, those that there are.

    Raises:
        InputError: there is neither a benchmark nor a failure; a file is missing, damaged or was edited; a document is
            of other files than the others.
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
        fresh.write_text(markdown.render(results, ordered, forecasts, failed))
    if page is None:
        return
    models = _models(fused, verifies, quantizes, metrics, pictures)
    checked = {path.parent: path for path in checks}
    files = [_exported(path, checked.get(path.parent), results) for path in manifests]
    exports = sorted(files, key=lambda one: (one.manifest.model, one.label))
    with replacing(page) as fresh:
        fresh.write_text(render.render(Built(results, ordered, models, exports, failed)))


def _results(path: Path) -> list[tuple[BenchResult, str | None]]:
    """The benchmarks in a file of one target or of one model, and the sha256 of each one's bench.json."""
    found = documents.read_either(TargetBench, BenchResult, path)
    if isinstance(found, BenchResult):
        return [(found, digests.digest(path))]
    return [(result, found.subjects.get(model)) for model, result in found.models.items()]


def _models(
    fused: dict[str, FuseResult],
    verifies: Sequence[Path],
    quantizes: Sequence[Path],
    metrics: Sequence[Path],
    pictures: Sequence[Path],
) -> dict[str, Model]:
    """What is known of each model, by name: that of the folder that a file lies in."""
    proved = {path.parent.name: (path, documents.read(VerifyResult, path)) for path in verifies}
    quantized = {path.parent.name: (path, documents.read(QuantizeResult, path)) for path in quantizes}
    trained = {path.parent.name: training_metrics.read(path) for path in metrics}
    drawn = {(path.parent.name, path.name): path for path in pictures}
    models = {}
    for name, fuse in fused.items():
        if name not in proved:
            raise InputError(f"there is no verify.json of {name}, so report.html cannot show it. Add it to --verifies.")
        for path, document in filter(None, (proved[name], quantized.get(name))):
            evidence.require_same(document, path, "fused", fuse.subjects.get("fused"))
        models[name] = Model(
            fuse=fuse,
            verify=proved[name][1],
            quantize=quantized[name][1] if name in quantized else None,
            epochs=trained.get(name, ()),
            structure=drawn.get((name, "structure.svg")),
            samples=drawn.get((name, "samples.png")),
        )
    return models


def _exported(path: Path, checked: Path | None, results: Sequence[BenchResult]) -> Exported:
    """Some files, with their check, and their benchmark if they were chosen for it."""
    if checked is None:
        raise InputError(f"there is no check.json of {path}, so report.html cannot show it. Add it to --checks.")
    manifest = documents.read(Manifest, path)
    check = evidence.read(CheckResult, checked, Inputs({"manifest": path}), "manifest")
    chosen = [one for one in results if _model_and_target(one) == _model_and_target(manifest)]
    return Exported(manifest, check, next((one for one in chosen if one.precision == manifest.precision), None))


def _model_and_target(result: BenchResult | ProfileResult | Manifest) -> tuple[str, str]:
    return result.model, result.target
