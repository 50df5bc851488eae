"""On which machines the figures were taken, what they are of, and what could not be had here."""

from collections.abc import Iterator, Mapping

from pipeline.artifacts.bench_result import BenchResult, Run
from pipeline.report import figures
from pipeline.report.figures import NONE
from pipeline.report.page.built import Built
from pipeline.report.page.content import Section, Table


def section(built: Built) -> Section | None:
    """A row for each measurement; None where nothing was measured."""
    runs = [one for result in built.results for one in _runs(result)]
    if not runs:
        return None
    machines = list(dict.fromkeys(_machine(run) for _, _, run in runs))
    rows = [
        {
            "model": model,
            "measured": of,
            "machine": f"M{machines.index(_machine(run)) + 1}",
            "threads": str(run.threads),
            "batch": str(run.conditions.batch),
            "launches": str(_launches(run)),
            "load before": _number(run.conditions.load_average_before),
            "after": _number(run.conditions.load_average_after),
            "others' cores": _number(run.conditions.other_load),
            "MHz": " to ".join(
                _number(one, 0) for one in (run.conditions.cpu_mhz_before, run.conditions.cpu_mhz_after)
            ),
            "°C": _temperatures(run.conditions.temperature_c_before, run.conditions.temperature_c_after),
            "busy": "yes" if run.conditions.busy else "no",
        }
        for model, of, run in runs
    ]
    told = [
        dict(zip(("machine", "what it is"), (f"M{place}", machine), strict=True))
        for place, machine in enumerate(machines, 1)
    ]
    warnings = dict.fromkeys(
        f"{model}, {of}: {run.conditions.warning}." for model, of, run in runs if run.conditions.warning
    )
    text = (
        "load is the average number of processes that wanted to run, in a minute; others' cores is how many cores "
        "other programs kept busy meanwhile. Where a machine was busy, latencies may be too high."
    )
    return Section(
        "conditions",
        "Conditions",
        [text],
        tables=[
            Table("The machines and their software", told, ("what it is",)),
            Table("Each measurement", rows, ("measured", "machine", "busy")),
        ],
        notes=list(warnings),
    )


def lineage(built: Built) -> Section:
    """Digests of everything, and versions."""
    made = [
        {"model": name, "what": subject, "sha256": sha256}
        for name, model in built.models.items()
        for subject, sha256 in _subjects(built, name, model.verify.subjects).items()
    ]
    files = [
        {
            "model": one.manifest.model,
            "target": one.label,
            "file": name,
            "MB": figures.megabytes(facts.size_bytes),
            "sha256": facts.sha256,
        }
        for one in built.exports
        for name, facts in one.manifest.files.items()
    ]
    versions = [
        {"target": target, "package": package, "version": version or "not installed"}
        for target, packages in {one.label: one.manifest.versions for one in built.exports}.items()
        for package, version in packages.items()
    ]
    networks = [
        {
            "model": name,
            "network": one.manifest.lineage.arch,
            "weights": one.manifest.lineage.weights,
            "came": "with branches" if one.manifest.lineage.form == "training" else "folded",
            "input": " x ".join(map(str, one.manifest.input.shape)),
        }
        for name in built.models
        for one in list(built.of(name))[:1]
    ]
    return Section(
        "lineage",
        "Lineage",
        ["Everything is named by the sha256 of its content. repnets verify-tree compares these with the files."],
        tables=[
            Table("The networks", networks, ("network", "weights", "came", "input")),
            Table("What the proofs are of", made, ("what", "sha256")),
            Table("The exported files", files, ("target", "file", "sha256")),
            Table("Versions of the packages that made the files", versions, ("package", "version")),
        ],
    )


def unavailable(built: Built) -> Section | None:
    """What has no figure here, why, and how to get one; None where everything has."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for result in built.results:
        if result.status != "ok":
            key = (result.status, result.reason or NONE, result.remedy or NONE)
            reasons.setdefault(key, []).append(result.target)
    profiles: dict[str, list[str]] = {}
    for profile in built.profiles:
        if profile.status != "ok" and profile.reason:
            profiles.setdefault(profile.reason, []).append(profile.target)
    rows = [
        {"targets": _listed(targets), "status": status, "why": why, "to get it": remedy}
        for (status, why, remedy), targets in reasons.items()
    ]
    notes = [f"No times of layers of {_listed(targets)}: {reason}" for reason, targets in profiles.items()]
    if not rows and not notes:
        return None
    tables = (
        [Table("Figures that could not be taken on this machine", rows, ("status", "why", "to get it"))] if rows else []
    )
    return Section("unavailable", "Unavailable here, and how to get it", tables=tables, notes=notes)


def _runs(result: BenchResult) -> Iterator[tuple[str, str, Run]]:
    if result.status == "ok":
        yield from ((result.model, result.target, run) for run in result.runs)
    if stand_in := result.reference:
        name = f"{stand_in.runtime} {stand_in.precision}, for {result.target}"
        yield from ((result.model, name, run) for run in stand_in.runs)


def _machine(run: Run) -> str:
    one = run.conditions
    versions = ", ".join(f"{package} {version}" for package, version in one.versions.items() if version)
    hardware = f"{', '.join([one.cpu, *one.gpus])} ({one.device}), {one.cores} cores, {one.memory_gib} GiB"
    return f"{hardware}, {one.os}; {versions}"


def _launches(run: Run) -> int:
    return max((one.latency_ms.launches for one in run.forms.values() if one.latency_ms), default=0)


def _number(value: float | None, digits: int = 2) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def _temperatures(before: Mapping[str, float] | None, after: Mapping[str, float] | None) -> str:
    """The hottest sensor, before and after."""
    found = [_number(max(one.values()), 0) for one in (before, after) if one]
    return " to ".join(found) or NONE


def _subjects(built: Built, name: str, proved: Mapping[str, str]) -> dict[str, str]:
    """What the proofs of a model are of, by name: those of verify.json, and the int8 program."""
    quantize = built.models[name].quantize
    return {
        **proved,
        **({"quantized": quantize.subjects["quantized"]} if quantize and "quantized" in quantize.subjects else {}),
    }


def _listed(names: list[str]) -> str:
    return ", ".join(dict.fromkeys(names))
