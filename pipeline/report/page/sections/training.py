"""Training curves."""

from collections.abc import Callable, Sequence

from pipeline.artifacts.metric import NONE, plain, unit_of
from pipeline.artifacts.training_metrics import Epoch
from pipeline.report.page import charts
from pipeline.report.page.built import Built
from pipeline.report.page.content import Chart, Section, Table


def section(built: Built) -> Section | None:
    """Loss, metric and learning rate over the epochs; None where no model was trained here."""
    points = [(name, one) for name, model in built.models.items() for one in model.epochs]
    if not points:
        return None
    metric = built.models[points[0][0]].verify.accuracy.metric
    unit, scale = unit_of(metric), 100 if unit_of(metric) == "%" else 1
    curves = [_curve("Loss on training images, mean of an epoch [no unit]", points, lambda one: one.loss, True)]
    if metric != NONE:
        title = f"{plain(metric)} on the validation images [{unit}]"
        curves.append(_curve(title, points, lambda one: one.score * scale))
    curves.append(_curve("Learning rate at the end of an epoch [no unit]", points, lambda one: one.learning_rate))
    speeds = [
        {
            "model": name,
            "epoch": str(one.epoch),
            "images/s": f"{one.images_per_second:,.0f}",
            "seconds": f"{one.seconds:.1f}",
        }
        for name, one in points
    ]
    caption = "How long each epoch took on the machine that trained; seconds are with validation"
    return Section("training", "Training", charts=curves, tables=[Table(caption, speeds)])


def _curve(
    title: str, points: Sequence[tuple[str, Epoch]], value: Callable[[Epoch], float], logarithmic: bool = False
) -> Chart:
    rows = [
        {
            "model": name,
            "epoch": one.epoch,
            "epoch_text": str(one.epoch),
            "value": value(one),
            "text": f"{value(one):.4g}",
        }
        for name, one in points
        if not logarithmic or value(one) > 0
    ]
    cells = [{"model": row["model"], "epoch": row["epoch_text"], "value": row["text"]} for row in rows]
    axis = f"{title.split(' on ')[0].split(' at ')[0]} {title[title.rindex('[') :]}"  # short enough for a phone
    shown = f"{axis}, logarithmic" if logarithmic else axis
    return Chart(title, charts.curves(rows, shown, logarithmic), Table(title, cells))
