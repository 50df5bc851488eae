"""The metric against latency and against size, for every target and precision, with the Pareto front."""

from collections.abc import Sequence

from pipeline.artifacts.metric import number, plain, shown, unit_of
from pipeline.report import figures
from pipeline.report.page import charts
from pipeline.report.page.built import Built, Exported
from pipeline.report.page.content import Chart, Section, Table

_TEXT = (
    "A full mark is a file that ships, a hollow one a baseline that it is compared with. No point on the dashed line "
    "(the Pareto front) has another one that is at least as good in both figures and better in one."
)


def section(built: Built) -> Section | None:
    """Both charts; None where no metric is known."""
    rows = [row for one in built.exports if one.check.status == "ok" for row in _rows(one)]
    if not rows:
        return None
    metric = built.exports[0].metric
    score = f"{plain(metric)} of the file [{unit_of(metric)}]"
    found = []
    timed = [
        {**row, "cost": row["latency"], "details": f"{figures.milliseconds(row['latency'])} ms"}
        for row in rows
        if row["latency"]
    ]
    sized = [{**row, "cost": row["size"], "details": f"{row['size']:.2f} MB"} for row in rows]
    for name, unit, points in (("Median latency", "ms", timed), ("Size of the file", "MB", sized)):
        if points:
            found.append(_chart(points, f"{name} [{unit}]", score, metric))
    notes = [] if timed else ["No latency was measured with a target's own runtime: see Unavailable here."]
    return Section("tradeoffs", "Metric against latency and size", [_TEXT], charts=found, notes=notes)


def front(points: Sequence[dict]) -> list[dict]:
    """The points with the largest score of all that cost as much or less, cheapest first, in each group."""
    found = []
    for group in dict.fromkeys(point["group"] for point in points):
        best = None
        members = [point for point in points if point["group"] == group]
        for point in sorted(members, key=lambda one: (one["cost"], -one["score"])):
            if best is None or point["score"] > best:
                best = point["score"]
                found.append(point)
    return found


def _rows(one: Exported) -> list[dict]:
    """A row for each form of a network's files."""
    scale = 100 if unit_of(one.metric) == "%" else 1
    measured = one.bench.runs if one.bench and one.bench.status == "ok" else ()
    run = measured[0] if measured else None
    rows = []
    for form, entry in one.manifest.forms.items():
        score, timed = one.score(form), run.forms.get(form) if run else None
        if score is None:
            continue
        rows.append(
            {
                "model": one.manifest.model,
                "label": one.label,
                "form": form,
                "precision": entry.precision,
                "ships": form == one.manifest.shipped,
                "score": score * scale,
                "score_text": shown(score, one.metric),
                "latency": timed.latency_ms.p50 if timed and timed.latency_ms else None,
                "size": one.size_bytes(form) / 1e6,
                "group": f"{run.conditions.device}, {run.conditions.threads} threads" if run else "",
            }
        )
    return rows


def _chart(points: list[dict], cost: str, score: str, metric: str) -> Chart:
    is_size = cost.startswith("Size")
    grouped = [{**point, "group": ""} for point in points] if is_size else points
    best = front(grouped)
    table = [
        {
            "model": row["model"],
            "target": row["label"],
            "form": row["form"],
            "precision": row["precision"],
            cost: f"{row['cost']:.3f}",
            score: number(row["score"] / 100 if unit_of(metric) == "%" else row["score"], metric),
            "on the front": "yes" if row in best else figures.NONE,
        }
        for row in grouped
    ]
    where = "" if is_size else ", for each device"
    caption = f"{plain(metric)} against {cost.partition(' [')[0].lower()} of every target and precision{where}"
    drawn = [{key: row[key] for key in row if key not in ("latency", "size", "group")} for row in grouped]
    lines = [{key: row[key] for key in ("group", "cost", "score")} for row in best]
    left = ("target", "form", "precision", "on the front")
    return Chart(caption, charts.tradeoff(drawn, lines, cost, score, plain(metric)), Table(caption, table, left))
