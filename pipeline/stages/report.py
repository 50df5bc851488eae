"""One page over every model and target: what was gained, what it cost, and what could not be measured here.

It is Markdown with aligned columns, to read in a terminal as well as rendered.
"""

from pathlib import Path

from pipeline.artifacts import documents
from pipeline.artifacts.atomic import replacing
from pipeline.artifacts.bench_result import BenchResult, Run, TargetBench
from pipeline.artifacts.fuse_result import Forecast, FuseResult
from pipeline.artifacts.profile_result import ProfileResult
from pipeline.benchmark.profile import milliseconds, slowest
from pipeline.config.stages import NoSettings
from pipeline.text import table, wrapped

_NONE = "-"
_LEFT = ("model", "target", "status", "stands in for", "layer", "worst layer", "operation", "precision", "on the front")
_LEGEND = (
    "`branched` is the network as it was trained, `fused` the same network with its branches folded into "
    "single convolutions, `file` what a device runs: the fused network, exported, or in int8 the quantized one. % is "
    "top-1 accuracy on the validation images, ms the median of one inference. `speed-up` is how many times as fast "
    "`file` is as `branched`, or where that is said below as `fused`, for the same runtime, with its 95% interval."
)
_SLOWEST_LAYERS = 10
_PROFILE = (
    "The operations of `file` that take the longest, at most {count} of each model and target, and their share of "
    "the time of all operations. A runtime that is made to tell takes longer, and what lies between operations is in "
    "none of them: so their sum is not the time of an inference."
)
_INT8 = (
    "A forecast from training images, before anything is quantized: what int8 adds to the logits, as a share of their "
    "standard deviation; `all` by all layers together, `worst` by the worst one alone, with the digits that its weight "
    "and its input have in int8. A layer that adds more than 22 % will hurt. docs/int8-forecast.md tells more."
)
_RACE = (
    "Targets of `precision: auto` ship the fastest file that holds its gates, or where two are as fast, the smaller; "
    "where their runtime is not on this machine, the smallest. A file is on the front where no other that holds its "
    "gates is at least as accurate, as fast and as small, and better in one."
)
_REFERENCE = (
    "NOT the target's figures. Its runtime is not on this machine, so the same network, in {precision}, was "
    "timed with {runtime} on this machine's CPU. They show what is gained on a CPU; a device can differ."
)


def run(
    settings: NoSettings, *, benches: list[Path], output: Path, profiles: list[Path] = (), fuses: list[Path] = ()
) -> None:
    """Write the report.

    Args:
        settings: none.
        benches: targets/<target>/bench.json of every target; or targets/<target>/<model>/bench.json of some models.
        output: where report.md goes.
        profiles: targets/<target>/<model>/profile.json of every target and model, for where the time goes.
        fuses: artifacts/<model>/fuse.json of every model, for what int8 will do.
    """
    results = [one for path in benches for one in _of_models(path)]
    profiled = [documents.read(ProfileResult, path) for path in profiles]
    measured, told = (sorted(read, key=_model_and_target) for read in (results, profiled))
    forecasts = {path.parent.name: documents.read(FuseResult, path).forecast for path in sorted(fuses)}
    with replacing(output) as fresh:
        fresh.write_text(_report(measured, told, forecasts))


def _of_models(path: Path) -> list[BenchResult]:
    """Of a file of one target or of one model."""
    found = documents.read_either(TargetBench, BenchResult, path)
    return list(found.models.values()) if isinstance(found, TargetBench) else [found]


def _model_and_target(result: BenchResult | ProfileResult) -> tuple[str, str]:
    return result.model, result.target


def _report(results: list[BenchResult], profiles: list[ProfileResult], forecasts: dict[str, Forecast]) -> str:
    rows = [row for result in results for row in _rows(result)]
    parts = ["# What the fold gained", wrapped(_LEGEND), table(_LEFT, _without_single_threads(rows))]
    parts += _notes(results)
    parts += _races(results)
    referred: dict[tuple[str, str], list[BenchResult]] = {}
    for result in results:
        if reference := result.reference:
            referred.setdefault((reference.runtime, reference.precision), []).append(result)
    for (runtime, precision), group in referred.items():
        parts += [
            f"## Reference: {runtime}, {precision}",
            wrapped(_REFERENCE.format(runtime=runtime, precision=precision)),
            table(_LEFT, _without_single_threads(_reference_rows(group))),
        ]
    if dear := [row for profile in profiles if profile.status == "ok" for row in _slowest_layers(profile)]:
        parts += ["## Where the time goes", wrapped(_PROFILE.format(count=_SLOWEST_LAYERS)), table(_LEFT, dear)]
    parts += _int8(forecasts) if forecasts else []
    parts += ["## Conditions", _conditions(results)]
    return "\n\n".join(parts) + "\n"


def _rows(result: BenchResult) -> list[dict[str, str]]:
    """A row for each number of threads; one where nothing was measured."""
    accuracy = result.accuracy
    return [
        {
            "model": result.model,
            "target": result.target,
            "status": "ok, busy" if run and run.conditions.busy else result.status,
            "threads": str(run.threads) if run else _NONE,
            "file MB": f"{result.forms[result.shipped].size_bytes / 1e6:.2f}",
            **{f"{name} %": _percent(getattr(accuracy, name)) for name in ("branched", "fused", "file")},
            "file ms": _median(run, result.shipped),
            "speed-up": _speedup(run),
        }
        for run in result.runs or [None]
    ]


def _reference_rows(results: list[BenchResult]) -> list[dict[str, str]]:
    """The rows of results whose reference is of one runtime and precision, so that they ship one form."""
    forms = dict.fromkeys(form for result in results for form in reversed(result.forms))
    return [
        {
            "model": result.model,
            "stands in for": result.target,
            "threads": str(run.threads),
            **{f"{form} ms": _median(run, form) for form in forms},
            "speed-up": _speedup(run),
        }
        for result in results
        for run in result.reference.runs
    ]


def _without_single_threads(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The column `threads` stands only where it tells rows apart."""
    if {row["threads"] for row in rows} <= {"1", _NONE}:
        return [{name: cell for name, cell in row.items() if name != "threads"} for row in rows]
    return rows


def _races(results: list[BenchResult]) -> list[str]:
    """What the targets of `precision: auto` chose from."""
    rows, reasons = [], []
    for result in results:
        for one in result.tried or ():
            is_chosen = one.precision == result.chosen
            rows.append(
                {
                    "model": result.model,
                    "target": result.target,
                    "precision": one.precision,
                    "status": f"chosen by {result.chosen_by}" if is_chosen else one.status,
                    "file %": _percent(one.accuracy),
                    "file ms": _NONE if one.p50_ms is None else f"{one.p50_ms:.3f}",
                    "file MB": f"{one.size_bytes / 1e6:.2f}",
                    "on the front": "yes" if one.pareto else _NONE,
                }
            )
            if one.reason:
                reasons.append(f"- {result.model} on {result.target}, {one.precision}: {one.reason}")
    notes = ["\n".join(wrapped(reason, "  ") for reason in reasons)] if reasons else []
    return ["## What auto chose from", wrapped(_RACE), table(_LEFT, rows), *notes] if rows else []


def _slowest_layers(profile: ProfileResult) -> list[dict[str, str]]:
    return [
        {
            "model": profile.model,
            "target": profile.target,
            "layer": one["layer"] or _NONE,
            "operation": one["name"],
            "ms": milliseconds(one),
            "share %": _percent(one["share"]),
        }
        for one in slowest(profile.operations, _SLOWEST_LAYERS)
    ]


def _int8(forecasts: dict[str, Forecast]) -> list[str]:
    """What int8 will do to each model, and what is to blame where it will hurt."""
    rows, lines = [], []
    for model, told in forecasts.items():
        if told.reason:
            lines.append(f"- {model}: not known, {told.reason}.")
            continue
        worst = max(told.layers, key=lambda layer: layer.logit_error.both)
        rows.append(
            {
                "model": model,
                "all %": _share(told.logit_error),
                "worst layer": worst.name,
                "worst %": _share(worst.logit_error.both),
                "weight dB": _decibels(worst.weight.snr_db),
                "input dB": _decibels(worst.input.snr_db),
            }
        )
        lines += [f"- {model}: {risk.message}" for risk in told.risks]
    sound = [row["model"] for row in rows if not forecasts[row["model"]].risks]
    lines += [f"- {_listed(sound)}: no layer will hurt."] if sound else []
    tables = [table(_LEFT, rows)] if rows else []
    notes = ["\n".join(wrapped(line, "  ") for line in lines)] if lines else []
    return ["## What int8 will do", wrapped(_INT8), *tables, *notes]


def _share(logit_error: float) -> str:
    """Of the logits' standard deviation, of a mean square over their variance."""
    return f"{logit_error**0.5 * 100:.1f}" if logit_error < 1 else "all"


def _decibels(value: float | None) -> str:
    return _NONE if value is None else f"{value:.0f}"


def _median(run: Run | None, form: str) -> str:
    entry = run and run.forms.get(form)
    return f"{entry.latency_ms.p50:.3f}" if entry else _NONE


def _speedup(run: Run | None) -> str:
    gained = run and run.speedup
    if not gained:
        return _NONE
    interval = f" ({gained.low:.2f}-{gained.high:.2f})" if gained.low is not None else ""
    return f"{gained.median:.2f}x{interval}"


def _percent(share: float | None) -> str:
    return _NONE if share is None else f"{share * 100:.2f}"


def _notes(results: list[BenchResult]) -> list[str]:
    """Which targets have no figure, why, and how to get one; and by what the files were checked."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    checkers: dict[str | None, list[str]] = {}
    for result in results:
        checkers.setdefault(result.accuracy.checked_by, []).append(result.target)
        if result.status != "ok":
            key = (result.status, result.reason, result.remedy)
            reasons.setdefault(key, []).append(result.target)
    folded = [result.model for result in results if result.accuracy.branched is None]
    lines = [f"- {_listed(folded)}: came folded, so there is no branched network to compare with."] if folded else []
    lines += [
        f"- {_listed(targets)}: {status}. {reason.rstrip('.')}. To get figures: {remedy.rstrip('.')}."
        for (status, reason, remedy), targets in reasons.items()
    ]
    baselines: dict[str, list[str]] = {}
    for result in results:
        other = next(iter(list(result.forms)[1:]), "branched")
        if other != "branched" and not (result.chosen and result.speedup is None):
            baselines.setdefault(other, []).append(result.target)
    lines += [f"- {_listed(targets)}: speed-up is over `{baseline}`." for baseline, targets in baselines.items()]
    for checker, targets in checkers.items():
        by = f"file % was taken with {checker}" if checker else "file % is unknown, nothing here runs the file"
        lines.append(f"- {_listed(targets)}: {by}.")
    return ["\n".join(wrapped(line, "  ") for line in lines)]


def _conditions(results: list[BenchResult]) -> str:
    """A line for each set of conditions, with what was measured under it; then the warnings."""
    seen: dict[str, dict[str, list[str]]] = {}
    warnings: dict[str, list[str]] = {}
    for result in results:
        target, is_ok = result.target, result.status == "ok"
        name = target if is_ok else f"reference for {target}"
        for run in (result if is_ok else result.reference or result).runs:
            held = run.conditions
            versions = ", ".join(f"{package} {version}" for package, version in held.versions.items() if version)
            text = (
                f"{', '.join([held.cpu, *held.gpus])} ({held.device}), threads {held.threads} of "
                f"{held.cores} cores, batch {held.batch}, {held.os}, {versions}"
            )
            seen.setdefault(text, {}).setdefault(name, []).append(result.model)
            if held.warning:
                warnings.setdefault(held.warning, []).append(f"{result.model} on {name}")
    lines = [
        f"- {'; '.join(f'{_listed(models)} on {name}' for name, models in under.items())}: {text}."
        for text, under in seen.items()
    ]
    lines += [f"- warning, {_listed(names)}: {warning}." for warning, names in warnings.items()]
    return "\n".join(wrapped(line, "  ") for line in lines)


def _listed(names: list[str]) -> str:
    return ", ".join(dict.fromkeys(names))
