"""The name of what a network is scored by, and how its values are written.

A share of one is written in percent. A metric in another unit has it in brackets at the end of its name, as in
`PSNR [dB]`. Of every metric more is better.
"""

import re

Metric = str
"""`top-1`, `mIoU`, `PSNR [dB]`; of images without labels `agreement` and `R2`; `none` of generated ones."""

TOP_1, AGREEMENT, R2, NONE = "top-1", "agreement", "R2", "none"
_DROP = {"%": 0.01, "dB": 0.3}
_BY_ITSELF = 0.01  # of a metric in another unit: of its value


def unit_of(metric: Metric) -> str:
    """`%` of a share of one; else the unit that the name ends with."""
    found = re.search(r" \[(.*)\]$", metric)
    return found[1] if found else "%"


def plain(metric: Metric) -> str:
    """The name without its unit."""
    return metric.removesuffix(f" [{unit_of(metric)}]")


def number(value: float, metric: Metric) -> str:
    """A value without its unit: 98.33 of a share, 31.27 of decibels."""
    return f"{value * 100:.2f}" if unit_of(metric) == "%" else f"{value:.2f}"


def shown(value: float, metric: Metric) -> str:
    """A value with its unit: `98.33%`, `31.27 dB`."""
    unit = unit_of(metric)
    return f"{number(value, metric)}{unit if unit == '%' else f' {unit}'}"


def allowed_drop(given: float | None, metric: Metric, before: float) -> float:
    """How much less a metric may be after a hop: as given; default a hundredth of a share, 0.3 dB, or a hundredth of
    what it was before."""
    return _DROP.get(unit_of(metric), _BY_ITSELF * abs(before)) if given is None else given
