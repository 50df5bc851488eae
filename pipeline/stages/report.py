"""One page over every model and target: what was gained, what it cost, and what could not be measured here."""

from pathlib import Path

from pipeline.artifacts import documents
from pipeline.artifacts.atomic import replacing
from pipeline.artifacts.bench_result import BenchResult, TargetBench
from pipeline.artifacts.fuse_result import FuseResult
from pipeline.artifacts.profile_result import ProfileResult
from pipeline.config.stages import NoSettings
from pipeline.report import page


def run(
    settings: NoSettings, *, benches: list[Path], output: Path, profiles: list[Path] = (), fuses: list[Path] = ()
) -> None:
    """Write the report.

    Args:
        settings: none.
        benches: targets/<target>/bench.json of every target; or targets/<target>/<model>/bench.json of some models.
        output: where report.md goes.
        profiles: targets/<target>/<model>/profile.json of every target and model, for the slowest layers.
        fuses: artifacts/<model>/fuse.json of every model, for the forecast of int8.
    """
    results = sorted((result for path in benches for result in _results(path)), key=_model_and_target)
    profiled = sorted((documents.read(ProfileResult, path) for path in profiles), key=_model_and_target)
    forecasts = {path.parent.name: documents.read(FuseResult, path).forecast for path in sorted(fuses)}
    with replacing(output) as fresh:
        fresh.write_text(page.render(results, profiled, forecasts))


def _results(path: Path) -> list[BenchResult]:
    """The benchmarks in a file of one target or of one model."""
    found = documents.read_either(TargetBench, BenchResult, path)
    return list(found.models.values()) if isinstance(found, TargetBench) else [found]


def _model_and_target(result: BenchResult | ProfileResult) -> tuple[str, str]:
    return result.model, result.target
