"""Collect the bench.json of every model of one target in targets/<target>/bench.json.

Its `status` is the worst of the models'; `models` has the whole bench.json of each.
"""

from pathlib import Path

from pipeline.artifacts import digests, documents
from pipeline.artifacts.atomic import replacing
from pipeline.artifacts.bench_result import BenchResult, TargetBench
from pipeline.config.stages import NoSettings
from pipeline.errors import InputError

_FROM_BEST = ("ok", "unavailable", "failed")


def run(settings: NoSettings, *, benches: list[Path], output: Path) -> None:
    """Collect the bench.json of each model of one target.

    Args:
        settings: none.
        benches: targets/<target>/<model>/bench.json, of one target.
        output: where targets/<target>/bench.json goes.

    Raises:
        InputError: the files are of several targets, or two of them of the same model.
    """
    results = [documents.read(BenchResult, path) for path in benches]
    targets = sorted({result.target for result in results})
    if len(targets) != 1:
        raise InputError(
            f"--benches names files of the targets {', '.join(targets)}, but each target has a "
            f"bench.json of its own; give the files of one."
        )
    models = {result.model: result for result in results}
    if len(models) != len(results):
        raise InputError(f"--benches names a model twice: {', '.join(map(str, benches))}; give each model once.")
    subjects = {result.model: digests.digest(path) for result, path in zip(results, benches, strict=True)}
    status = max((result.status for result in results), key=_FROM_BEST.index)
    with replacing(output) as fresh:
        documents.write(fresh, TargetBench(targets[0], status, subjects, models))
