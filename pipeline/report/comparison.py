"""Two builds held against each other: what got faster, slower, larger or less accurate, and what of it is not allowed.

A figure that is counted (operations, multiply-accumulates, bytes) is compared as it is: it is the same in every build
of the same network, on a busy machine too. A latency is compared where both builds timed it on the same machine and
found that quiet, and got slower only where the two 95 % intervals do not meet.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.artifacts import documents, metric
from pipeline.artifacts.bench_result import BenchResult, Conditions
from pipeline.artifacts.check_result import CheckResult
from pipeline.artifacts.export_result import Manifest
from pipeline.artifacts.fuse_result import FuseResult
from pipeline.errors import InputError

Verdict = Literal["same", "better", "worse", "regression", "not judged"]

_SAME_MACHINE = ("device", "cpu", "cores", "gpus", "power_mode", "threads", "batch")


@dataclass(frozen=True)
class Measure:
    """A figure of a file.

    Attributes:
        limit: how much worse it may get, as a share of what it was; None for the metric: see `metric.allowed_drop`.
        more_is_better: or less.
        write: how a value is written.
    """

    limit: float | None
    more_is_better: bool = False
    write: Callable[[float], str] = "{:,.0f}".format


MEASURES: Mapping[str, Measure] = {
    "operations": Measure(0),
    "convolutions": Measure(0),
    "outside": Measure(0),
    "int8": Measure(0, more_is_better=True),
    "macs": Measure(0),
    "parameters": Measure(0),
    "size": Measure(0.01, write=lambda value: f"{value / 1e6:,.3f} MB"),
    "metric": Measure(None, more_is_better=True),
    "latency": Measure(0.02, write="{:.3f} ms".format),
    "memory": Measure(0.1, write=lambda value: f"{value / 2**20:.1f} MiB"),
}
"""By name: operations and convolutions of the file, operations outside its delegate, layers in int8, of the fused
network the multiply-accumulates and parameters, bytes that ship, the task's metric, median latency and peak memory."""


@dataclass(frozen=True)
class Built:
    """What a build says of one network for one target.

    Attributes:
        values: by the measure; those that are not known are left out.
        kind: of the metric.
        latency_interval: 95 %, of the median latency, ms; None where it was not timed, or not often enough.
        conditions: of that.
        status: of the benchmark; None without one.
        versions: of the packages that made the file.
    """

    values: Mapping[str, float]
    kind: metric.Metric
    latency_interval: tuple[float, float] | None
    conditions: Conditions | None
    status: str | None
    versions: Mapping[str, str | None]


@dataclass(frozen=True)
class Row:
    """One figure of both builds.

    Attributes:
        model, target: of the file.
        measure: as in `MEASURES`, or `file` for one that one build lacks.
        before, after: as they are written.
        change: in words; empty where nothing changed.
        verdict: ``worse`` is within the limit, a ``regression`` is not.
        why: of a verdict that needs it.
    """

    model: str
    target: str
    measure: str
    before: str
    after: str
    change: str
    verdict: Verdict
    why: str = ""


Key = tuple[str, str]


def read(folder: Path) -> dict[Key, Built]:
    """All files that a project has built, by model and target.

    Args:
        folder: of the project, or a report in it.

    Raises:
        InputError: there is none; a document is damaged.
    """
    place = folder.parent if folder.is_file() else folder
    manifests = sorted(place.glob("targets/*/*/manifest.json"))
    if not manifests:
        raise InputError(
            f"{place} has no targets/<target>/<model>/manifest.json: name the folder of a project that is built."
        )
    return {(path.parts[-2], path.parts[-3]): _built(place, path) for path in manifests}


def _built(place: Path, path: Path) -> Built:
    manifest = documents.read(Manifest, path)
    values: dict[str, float] = {"size": sum(one.size_bytes for one in manifest.shipped_files.values())}
    outside = manifest.shipped_form.facts.get("operations_outside")
    if isinstance(outside, Mapping):
        values["outside"] = sum(outside.values())
    if (fuse := place / "artifacts" / manifest.model / "fuse.json").is_file():
        after = documents.read(FuseResult, fuse).after
        values |= {"macs": after.macs, "parameters": after.parameters}
    kind = metric.NONE
    if (check := path.with_name("check.json")).is_file():
        checked = documents.read(CheckResult, check)
        census = checked.forms[manifest.shipped].census
        values |= {"operations": census["total"], "convolutions": census["convolution"], "int8": census["int8"]}
        kind = checked.accuracy.metric
        if kind != metric.NONE:
            values["metric"] = checked.accuracy.file
    bench = path.with_name("bench.json")
    result = documents.read(BenchResult, bench) if bench.is_file() else None
    figures = result.forms.get(result.shipped) if result and result.status == "ok" else None
    interval = None
    if figures and figures.latency_ms:
        values["latency"], interval = figures.latency_ms.p50, figures.latency_ms.interval["p50"]
        if figures.peak_memory_bytes is not None:
            values["memory"] = figures.peak_memory_bytes
    return Built(values, kind, interval, result and result.conditions, result and result.status, manifest.versions)


def compare(before: Mapping[Key, Built], after: Mapping[Key, Built], limits: Mapping[str, float]) -> list[Row]:
    """Every figure of both builds, model by model.

    Args:
        before, after: from `read`.
        limits: by the measure, in place of those in `MEASURES`, as shares, of a metric with a unit as hundredths of it;
            infinity: it is never a regression.
    """
    rows = []
    for key in sorted(before.keys() | after.keys()):
        if key not in after:
            rows.append(
                Row(*key, "file", "there", "missing", "missing", "regression", "the second build has no such file")
            )
        elif key not in before:
            rows.append(Row(*key, "file", "missing", "there", "new", "better"))
        else:
            rows += _rows(key, before[key], after[key], limits)
    return rows


def changed_versions(before: Mapping[Key, Built], after: Mapping[Key, Built]) -> list[str]:
    """Packages whose versions differ, in words: ``executorch 1.5.0 to 1.5.1``."""
    pairs = {
        (name, before[key].versions.get(name), after[key].versions.get(name))
        for key in before.keys() & after.keys()
        for name in before[key].versions.keys() | after[key].versions.keys()
    }
    return [f"{name} {old or 'none'} to {new or 'none'}" for name, old, new in sorted(pairs, key=str) if old != new]


def _rows(key: Key, before: Built, after: Built, limits: Mapping[str, float]) -> Iterator[Row]:
    if before.status == "ok" and after.status == "failed":
        yield Row(*key, "file", "measured", "failed", "failed", "regression", "its benchmark failed")
    for name, measure in MEASURES.items():
        if name not in before.values or name not in after.values:
            continue
        old, new = before.values[name], after.values[name]
        of_metric = name == "metric"
        if of_metric and before.kind != after.kind:
            yield Row(*key, before.kind, "-", "-", f"now {after.kind}", "not judged", "another metric")
            continue
        allowed = _allowed_drop(before.kind, old, limits) if of_metric else limits.get(name, measure.limit) * abs(old)
        worse = old - new if measure.more_is_better else new - old
        why = _not_comparable(before, after) if name in ("latency", "memory") else ""
        if why:
            verdict: Verdict = "not judged"
        elif name == "latency" and _meet(before, after):
            verdict, why = "same", "the intervals meet"
        else:
            verdict = "same" if not worse else "better" if worse < 0 else "worse" if worse <= allowed else "regression"
        write = (lambda value: metric.shown(value, before.kind)) if of_metric else measure.write
        label = metric.plain(before.kind) if of_metric else name
        yield Row(
            *key, label, write(old), write(new), _change(old, new, before.kind if of_metric else None), verdict, why
        )


def _allowed_drop(kind: metric.Metric, before: float, limits: Mapping[str, float]) -> float:
    given = limits.get("metric")
    if given is not None and metric.unit_of(kind) != "%":
        given *= 100  # limits are hundredths, which is points of a share alone
    return metric.allowed_drop(given, kind, before)


def _change(old: float, new: float, kind: metric.Metric | None) -> str:
    if old == new:
        return ""
    if kind is not None:
        sign = "+" if new > old else "-"
        unit = metric.unit_of(kind)
        return f"{sign}{metric.number(abs(new - old), kind)} {'points' if unit == '%' else unit}"
    return f"{(new - old) / old:+.1%}" if old else f"{new - old:+,.0f}"


def _meet(before: Built, after: Built) -> bool:
    """Whether the 95 % intervals of both median latencies have a value in common."""
    if before.latency_interval is None or after.latency_interval is None:
        return True
    (low, high), (other_low, other_high) = before.latency_interval, after.latency_interval
    return low <= other_high and other_low <= high


def _not_comparable(before: Built, after: Built) -> str:
    """Why latencies of two builds say nothing of each other, in words; empty where they do."""
    if before.conditions is None or after.conditions is None:
        return "its conditions are not known"
    for name in _SAME_MACHINE:
        old, new = getattr(before.conditions, name), getattr(after.conditions, name)
        if old != new:
            return f"{name.replace('_', ' ')} is not the same"
    busy = [word for word, one in (("first", before), ("second", after)) if one.conditions.busy]
    return f"the machine was busy in the {' and the '.join(busy)} build" if busy else ""
