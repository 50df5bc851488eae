"""Where cost and time go, layer by layer, before and after; and what was not folded."""

from collections import defaultdict

from pipeline.artifacts.profile_result import ProfileResult
from pipeline.report import figures
from pipeline.report.page import charts
from pipeline.report.page.built import Built, Model
from pipeline.report.page.content import Chart, Section, Table

MOST_ROWS = 40
"""Rows of a chart or table of layers; the largest stay."""
_OTHER = "(no layer)"


def section(built: Built) -> Section | None:
    """Multiply-accumulates before and after folding, and the time of each layer of what ships."""
    found = []
    for name, model in built.models.items():
        found += [chart for chart in (_cost(name, model), _time(name, built)) if chart]
    text = (
        "Multiply-accumulates are those of one image at the size of training. Times are the profile of the file that "
        "ships, in a run of its own: profiling slows a runtime down, so their sum is not the latency of an inference. "
        "A ~ marks what a runtime only estimates."
    )
    return Section("layers", "Cost of each layer", [text], charts=found) if found else None


def left_as_they_are(built: Built) -> Section:
    """What was not folded and why, and batch norms out of the ordinary."""
    tables, notes = [], []
    for name, model in built.models.items():
        rows = [
            {"call": refusal.node, "layer": refusal.path or figures.NONE, "reason": refusal.reason}
            for refusal in model.fuse.refusals
        ]
        if rows:
            tables.append(Table(f"What was not folded in {name}", rows[: 5 * MOST_ROWS], ("layer", "reason")))
        else:
            notes.append(f"{name}: everything that can be folded was folded.")
        if len(rows) > 5 * MOST_ROWS:
            notes.append(f"{name}: {len(rows) - 5 * MOST_ROWS} more are in artifacts/{name}/fuse.json.")
        notes += [f"{name}: {finding.message}" for finding in model.fuse.bn_health[:MOST_ROWS]]
    return Section("not-folded", "What was not folded, and why", tables=tables, notes=notes)


def _cost(name: str, model: Model) -> Chart | None:
    regions = model.fuse.regions
    if not regions:
        return None
    kept = sorted(regions, key=lambda one: -one.macs_before)[:MOST_ROWS]
    shown = [region for region in regions if region in kept]
    rows, cells = [], []
    for region in shown:
        calls = f"{region.convolutions} convolutions and {region.batch_norms} batch norms to 1 {region.kind}"
        for series, macs in (("before", region.macs_before), ("after", region.macs_after)):
            text = f"{macs / 1e6:,.3f} M; {calls}"
            rows.append({"name": region.name, "series": series, "value": macs / 1e6, "text": text})
        cells.append(
            {
                "layer": region.name,
                "became": region.kind,
                "convolutions": str(region.convolutions),
                "batch norms": str(region.batch_norms),
                "before [M]": f"{region.macs_before / 1e6:,.3f}",
                "after [M]": f"{region.macs_after / 1e6:,.3f}",
                "parameters before": f"{region.parameters_before:,}",
                "parameters after": f"{region.parameters_after:,}",
            }
        )
    caption = f"Multiply-accumulates of each folded layer of {name}, before and after{_cut(len(regions))} [millions]"
    spec = charts.pairs(rows, "Multiply-accumulates [millions]")
    return Chart(caption, spec, Table(caption, cells, ("became",)))


def _time(name: str, built: Built) -> Chart | None:
    profiles = [one for one in built.profiles if one.model == name and one.status == "ok" and one.operations]
    if not profiles:
        return None
    by_layer = {profile.target: _by_layer(profile) for profile in profiles}
    order = list(dict.fromkeys(layer for layers in by_layer.values() for layer in layers))
    worst = {layer: max(layers.get(layer, (0.0, ""))[0] for layers in by_layer.values()) for layer in order}
    kept = set(sorted(order, key=lambda layer: -worst[layer])[:MOST_ROWS])
    rows = [
        {"name": layer, "series": target, "value": layers[layer][0], "text": layers[layer][1]}
        for layer in order
        if layer in kept
        for target, layers in by_layer.items()
        if layer in layers
    ]
    cells = [
        {
            "layer": layer,
            **{
                f"{target} [ms]": layers.get(layer, (0, figures.NONE))[1].split(" ")[0]
                for target, layers in by_layer.items()
            },
        }
        for layer in order
        if layer in kept
    ]
    caption = f"Time of each layer of {name} in what ships{_cut(len(order))} [ms]"
    return Chart(caption, charts.dots(rows, "Time of the layer [ms]", "Target"), Table(caption, cells))


def _by_layer(profile: ProfileResult) -> dict[str, tuple[float, str]]:
    """The time of each layer and how it is written, in the order of execution."""
    times: dict[str, float] = defaultdict(float)
    estimated = set()
    for one in profile.operations:
        layer = one.layer or _OTHER
        times[layer] += one.ms
        estimated |= {layer} if one.estimated else set()
    return {
        layer: (ms, f"{'~' * (layer in estimated)}{figures.milliseconds(ms)} ms on {profile.threads} threads")
        for layer, ms in times.items()
    }


def _cut(count: int) -> str:
    return f", the {MOST_ROWS} largest of {count}" if count > MOST_ROWS else ""
