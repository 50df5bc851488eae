"""The charts of the page, as specifications of Vega-Lite. Colours and sizes of text are the page's: see page.js.

Each function gets rows of plain values. Altair checks the specification; names of fields are fixed, so that nothing
that comes from a file is read as an expression.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import altair as alt

Row = Mapping[str, str | float | int | bool | None]
_ROW_PX = 22
_PLOT_PX = 300
_SMALLEST = 1e-18
"""Where an error of zero is drawn on a logarithmic scale."""


def tradeoff(rows: Sequence[Row], front: Sequence[Row], cost: str, score: str, metric: str) -> dict[str, Any]:
    """A score against a cost, with the Pareto front.

    Args:
        rows: ``label``, ``model``, ``form``, ``ships``, ``cost``, ``score``, ``precision`` and ``details``.
        front: ``group``, ``cost`` and ``score`` of the points on each front, cheapest first.
        cost, score: titles of the axes, with units.
        metric: for the tooltip.
    """
    import altair as alt

    x = alt.X("cost:Q", title=f"{cost}, logarithmic", scale=alt.Scale(type="log", nice=False, padding=20))
    y = alt.Y("score:Q", title=score, scale=alt.Scale(domain=_around([row["score"] for row in rows]), nice=False))
    lines = (
        alt.Chart(_data(front))
        .mark_line(interpolate="step-after", strokeWidth=1.5, strokeDash=[5, 3], aria=False)
        .encode(x=x, y=y, detail="group:N", stroke=alt.value("gray"))
    )
    points = (
        alt.Chart(_data(rows))
        .mark_point(size=90, strokeWidth=2)
        .encode(
            x=x,
            y=y,
            stroke=alt.Stroke("label:N", title="Target"),
            shape=alt.Shape("model:N", title="Model"),
            fillOpacity=alt.condition("datum.ships", alt.value(0.85), alt.value(0)),
            fill=alt.Fill("label:N", title="Target"),
            tooltip=_tooltip(
                model="Model", label="Target", form="Form", precision="Precision", score_text=metric, details="Cost"
            ),
        )
    )
    return _spec(alt.layer(lines, points), _PLOT_PX)


def latencies(rows: Sequence[Row]) -> dict[str, Any]:
    """Ranges of latencies: ``name``, ``minimum``, ``p50``, ``p90``, ``p99``, ``runtime`` and ``text``."""
    import altair as alt

    scale = alt.Scale(type="log", nice=False, padding=12)
    title = "Latency of an inference [ms], logarithmic"
    base = alt.Chart(_data(rows)).encode(
        y=_names(rows, "name"),
        color=alt.Color("runtime:N", title="Measured with"),
        tooltip=_tooltip(
            name="File", minimum_text="Fastest", p50_text="Median", p90_text="90 %", p99_text="99 %", text="Runs"
        ),
    )
    whole = base.mark_rule(strokeWidth=1.5, aria=False).encode(
        x=alt.X("minimum:Q", scale=scale, title=title), x2="p99:Q"
    )
    most = base.mark_bar(height=7, opacity=0.55, aria=False).encode(
        x=alt.X("p50:Q", scale=scale, title=title), x2="p90:Q"
    )
    median = base.mark_tick(thickness=3, height=16).encode(x=alt.X("p50:Q", scale=scale, title=title))
    return _spec(alt.layer(whole, most, median), _height(rows))


def pairs(rows: Sequence[Row], title: str, logarithmic: bool = False) -> dict[str, Any]:
    """Two values a row, joined by a line: ``name``, ``series``, ``value`` and ``text``.

    Args:
        rows: in the order of the names.
        title: of the axis, with the unit.
        logarithmic: the axis; zero is drawn at its left end.
    """
    import altair as alt

    shown = [{**row, "value": max(row["value"], _SMALLEST)} for row in rows] if logarithmic else rows
    scale = alt.Scale(type="log", nice=False, padding=14) if logarithmic else alt.Scale(zero=True)
    axis = alt.Axis(format=".0e") if logarithmic else alt.Axis()
    base = alt.Chart(_data(shown))
    y = _names(rows, "name")
    joined = base.mark_line(strokeWidth=1.2, opacity=0.6, aria=False).encode(
        x=alt.X("value:Q", scale=scale), y=y, detail="name:N", color=alt.value("gray")
    )
    points = base.mark_point(size=70, filled=True, opacity=1).encode(
        x=alt.X("value:Q", scale=scale, axis=axis, title=title),
        y=y,
        color=alt.Color("series:N", title=None, sort=None),
        shape=alt.Shape("series:N", title=None, sort=None),
        tooltip=_tooltip(name="Of", series="What", text="Value"),
    )
    return _spec(alt.layer(joined, points), _height(rows))


def dots(
    rows: Sequence[Row], title: str, series: str | None = None, *, zero: bool = True, logarithmic: bool = False
) -> dict[str, Any]:
    """A value a row, of one or several series: ``name``, ``series``, ``value``, ``text``.

    Args:
        rows: in the order of the names.
        title: of the axis, with the unit.
        series: title of the legend; None: none.
        zero: the axis begins at zero.
        logarithmic: the axis.
    """
    import altair as alt

    scale = alt.Scale(type="log", nice=False, padding=14) if logarithmic else alt.Scale(zero=zero)
    axis = alt.Axis(format=".0e") if logarithmic else alt.Axis()
    legend = alt.Legend(title=series) if series else None
    chart = (
        alt.Chart(_data(rows))
        .mark_point(size=70, filled=True, opacity=0.9)
        .encode(
            x=alt.X("value:Q", title=title, scale=scale, axis=axis),
            y=_names(rows, "name"),
            color=alt.Color("series:N", legend=legend, sort=None),
            shape=alt.Shape("series:N", legend=legend, sort=None),
            tooltip=_tooltip(name="Of", series="What", text="Value"),
        )
    )
    return _spec(chart, _height(rows))


def curves(rows: Sequence[Row], title: str, logarithmic: bool = False) -> dict[str, Any]:
    """A value over the epochs of training, a line a model: ``model``, ``epoch``, ``value`` and ``text``."""
    import altair as alt

    scale = alt.Scale(type="log", nice=False) if logarithmic else alt.Scale(zero=False)
    chart = (
        alt.Chart(_data(rows))
        .mark_line(point=alt.OverlayMarkDef(size=40), strokeWidth=2)
        .encode(
            x=alt.X("epoch:Q", title="Epoch", axis=alt.Axis(tickMinStep=1, format="d")),
            y=alt.Y("value:Q", title=title, scale=scale),
            color=alt.Color("model:N", title="Model"),
            strokeDash=alt.StrokeDash("model:N", title="Model"),
            tooltip=_tooltip(model="Model", epoch_text="Epoch", text="Value"),
        )
    )
    return _spec(chart, 220)


def _around(values: Sequence[float]) -> list[float]:
    """A range around values that may all be equal."""
    low, high = min(values), max(values)
    margin = max(0.1 * (high - low), 0.002 * abs(high), 1e-6)
    return [low - margin, high + margin]


def _data(rows: Sequence[Row]) -> "alt.InlineData":
    import altair as alt

    return alt.InlineData(values=[dict(row) for row in rows])


def _names(rows: Sequence[Row], field: str) -> "alt.Y":
    import altair as alt

    return alt.Y(f"{field}:N", title=None, sort=list(dict.fromkeys(row[field] for row in rows)))


def _tooltip(**titles: str) -> "list[alt.Tooltip]":
    import altair as alt

    return [alt.Tooltip(f"{field}:N", title=title) for field, title in titles.items()]


def _height(rows: Sequence[Row]) -> int:
    return max(60, _ROW_PX * len({row["name"] for row in rows}))


def _spec(chart: "alt.Chart | alt.LayerChart", height: int) -> dict[str, Any]:
    spec = chart.properties(width="container", height=height).to_dict()
    del spec["config"]  # the page has its own, for light and dark
    return spec
