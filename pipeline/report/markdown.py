"""report.md: one page over every model and target, to read in a terminal as well as rendered."""

from collections.abc import Mapping, Sequence

from pipeline.artifacts.bench_result import BenchResult, Conditions
from pipeline.artifacts.check_result import Sample
from pipeline.artifacts.failures import Failures
from pipeline.artifacts.fuse_result import Forecast
from pipeline.artifacts.metric import TOP_1, plain, unit_of
from pipeline.artifacts.profile_result import ProfileResult
from pipeline.artifacts.verify_result import Metric
from pipeline.report import tables
from pipeline.report.text import wrapped

_LEGEND = (
    "`branched` is the network as it was trained, `fused` the same network with its branches folded into single "
    "convolutions, `file` what a device runs: the fused network, exported, or for int8 the quantized one. % is top-1 "
    "accuracy on the validation images, ms the median latency. `speed-up` is how many times as fast `file` is as "
    "`branched` on the same runtime, with its 95% interval; a note below says where it is over `fused` instead."
)
_TOP1 = "% is top-1 accuracy on the validation images, ms"
_UNLABELLED = {
    "R2": "Nothing is known of what the network gives: % is R2, the share of the variance of the float network's "
    "outputs that is kept on the pictures; of several outputs the least. ms",
    "agreement": "The pictures have no labels: % is how far the network agrees with itself as trained, in float; "
    "of classes the share of pictures or pixels of the same one. ms is",
    "none": "There are no pictures: files were held against the network on generated ones, which tell nothing of its "
    "accuracy, so there is no %. ms is",
}
_SLOWEST_LAYERS = (
    "The slowest operations of `file`, at most {count} for each model and target, and their share of the time of all "
    "operations. Profiling slows a runtime down, and the time between operations is counted in none of them, so "
    "their sum is not the latency of an inference."
)
_INT8 = (
    "A forecast from training images, made before anything is quantized. `all` is the error that int8 adds to the "
    "logits when every layer is quantized, as a percentage of their standard deviation; `worst` is the error from the "
    "worst layer alone, and the two columns in dB are the precision of its weight and of its input in int8. A layer "
    "that adds more than 22 % will lose accuracy. See docs/int8-forecast.md."
)
_CANDIDATES = (
    "A target of `precision: auto` ships the fastest file that passes its gates; of files that are equally fast, the "
    "smallest; and the smallest as well where its runtime is not on this machine. A file is on the (Pareto) front if "
    "no other file that passes its gates is at least as accurate, as fast and as small, and better in one of these."
)
_REFERENCE = (
    "These are NOT figures of the target. Its runtime is not on this machine, so the same network was timed in "
    "{precision} with {runtime} on this machine's CPU. They show what is gained on a CPU; a device can differ."
)


def render(
    results: Sequence[BenchResult],
    profiles: Sequence[ProfileResult],
    forecasts: Mapping[str, Forecast],
    failed: Failures | None = None,
) -> str:
    """The page, as Markdown.

    Args:
        results: of every model and target, in the order of the rows.
        profiles: likewise; those without figures are left out.
        forecasts: what int8 is expected to do, by model.
        failed: the jobs that failed, and the models and targets that lack because of them.
    """
    legend = _LEGEND
    for metric in {result.accuracy.metric for result in results} - {TOP_1}:
        of_task = f"{unit_of(metric)} is {plain(metric)} on the validation images, ms"
        legend = _LEGEND.replace(_TOP1, _UNLABELLED.get(metric, of_task))
    table = tables.benchmarks(results, failed.missing if failed else ())
    parts = ["# What the fold gained", *(_failures(failed) if failed else []), wrapped(legend), table, _notes(results)]
    parts += _candidates(results) if any(result.tried for result in results) else []
    for (runtime, precision), group in _by_reference(results).items():
        text = wrapped(_REFERENCE.format(runtime=runtime, precision=precision))
        parts += [f"## Reference: {runtime}, {precision}", text, tables.references(group)]
    if profiled := [profile for profile in profiles if profile.status == "ok"]:
        text = wrapped(_SLOWEST_LAYERS.format(count=tables.SLOWEST_LAYERS))
        parts += ["## Where the time goes", text, tables.slowest_layers(profiled)]
    parts += _int8(forecasts) if forecasts else []
    parts += ["## Conditions", _conditions(results)] if results else []
    return "\n\n".join(filter(None, parts)) + "\n"


def _failures(failed: Failures) -> list[str]:
    """What was not built, and why."""
    lost = _listed([f"{model} for {target}" for model, target in failed.missing])
    head = (
        f"**Not everything was built: {lost or 'a file that was asked for'}.** What else is here passed all its gates."
    )
    return [wrapped(head), _bullets([f"- {job.what}: {job.reason} Its log: {job.log}" for job in failed.jobs])]


def _by_reference(results: Sequence[BenchResult]) -> dict[tuple[str, str], list[BenchResult]]:
    """The results that have a reference, by its runtime and precision."""
    found: dict[tuple[str, str], list[BenchResult]] = {}
    for result in results:
        if reference := result.reference:
            found.setdefault((reference.runtime, reference.precision), []).append(result)
    return found


def _candidates(results: Sequence[BenchResult]) -> list[str]:
    reasons = [
        f"- {result.model} on {result.target}, {one.precision}: {one.reason}"
        for result in results
        for one in result.tried or ()
        if one.reason
    ]
    notes = [_bullets(reasons)] if reasons else []
    return ["## What auto chose from", wrapped(_CANDIDATES), tables.candidates(results), *notes]


def _int8(forecasts: Mapping[str, Forecast]) -> list[str]:
    known = {model: forecast for model, forecast in forecasts.items() if not forecast.reason}
    lines = []
    for model, forecast in forecasts.items():
        if forecast.reason:
            lines.append(f"- {model}: not known, {forecast.reason}.")
        lines += [f"- {model}: {risk.message}" for risk in forecast.risks]
    sound = [model for model, forecast in known.items() if not forecast.risks]
    lines += [f"- {_listed(sound)}: no layer will lose accuracy."] if sound else []
    parts = ["## What int8 will do", wrapped(_INT8)]
    parts += [tables.int8_forecasts(known)] if known else []
    return [*parts, _bullets(lines)] if lines else parts


def _notes(results: Sequence[BenchResult]) -> str:
    """Which targets have no figure, why, and how to get one; and which runtime checked the files."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    baselines: dict[str, list[str]] = {}
    checkers: dict[str | None, list[str]] = {}
    for result in results:
        checkers.setdefault(result.accuracy.checked_by, []).append(result.target)
        if result.status != "ok":
            key = (result.status, result.reason, result.remedy)
            reasons.setdefault(key, []).append(result.target)
        baseline = next(iter(list(result.forms)[1:]), "branched")
        if baseline != "branched" and not (result.chosen and result.speedup is None):
            baselines.setdefault(baseline, []).append(result.target)
    told = [result for result in results if result.accuracy.metric != "none"]
    folded = [result.model for result in told if result.accuracy.branched is None]
    lines = [f"- {_listed(folded)}: came folded, so there is no branched network to compare with."] if folded else []
    lines += [
        f"- {_listed(targets)}: {status}. {reason.rstrip('.')}. To get figures: {remedy.rstrip('.')}."
        for (status, reason, remedy), targets in reasons.items()
    ]
    lines += [f"- {_listed(targets)}: speed-up is over `{baseline}`." for baseline, targets in baselines.items()]
    for checker, targets in checkers.items():
        column = f"file {unit_of(results[0].accuracy.metric)}"
        text = (
            f"{column} was measured with {checker}" if checker else f"{column} is unknown: nothing here runs the file"
        )
        lines.append(f"- {_listed(targets)}: {text}.")
    lines += [
        f"- {result.model} on {result.target}: {_sampled(result.accuracy.sample, result.accuracy.metric)}."
        for result in results
        if result.accuracy.sample
    ]
    return _bullets(lines)


def _sampled(sample: Sample, metric: Metric) -> str:
    text = f"checked on {sample.images:,} of {sample.of:,} validation images (`check.images`)"
    return text if metric == "none" else f"{text}, on which fused has {sample.fused:.2%}"


def _conditions(results: Sequence[BenchResult]) -> str:
    """A line for each set of conditions, with what was measured under it; then the warnings."""
    measured_under: dict[str, dict[str, list[str]]] = {}
    warnings: dict[str, list[str]] = {}
    for result in results:
        is_ok = result.status == "ok"
        name = result.target if is_ok else f"reference for {result.target}"
        for run in (result if is_ok else result.reference or result).runs:
            text = _described(run.conditions)
            measured_under.setdefault(text, {}).setdefault(name, []).append(result.model)
            if run.conditions.warning:
                warnings.setdefault(run.conditions.warning, []).append(f"{result.model} on {name}")
    lines = [
        f"- {'; '.join(f'{_listed(models)} on {name}' for name, models in targets.items())}: {text}."
        for text, targets in measured_under.items()
    ]
    return _bullets(lines + [f"- warning, {_listed(names)}: {warning}." for warning, names in warnings.items()])


def _described(conditions: Conditions) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in conditions.versions.items() if version)
    return (
        f"{', '.join([conditions.cpu, *conditions.gpus])} ({conditions.device}), threads {conditions.threads} of "
        f"{conditions.cores} cores, batch {conditions.batch}, {conditions.os}, {versions}"
    )


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(wrapped(line, "  ") for line in lines)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(names))
