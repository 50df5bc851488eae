"""A forecast of the error of int8 in a fused network, layer by layer, and its causes, before it is quantized.

Rounding a layer's weight and its input to int8 adds an error to the logits. The forecast gives it for each layer alone,
as the mean square of that error over the variance of the logits: 0 is no error, 1 as much error as signal. If it is
large, the figures of the kernel, of the activation and of the folded batch norms show the cause.

The range or precision of a kernel does not predict it: a kernel of 23 dB may be harmless and one of 40 dB not
(docs/int8-forecast.md has the figures). So without images there are figures and no risks.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from math import isfinite, log10

import torch
from torch import Tensor, fx, nn

from repnets.errors import RepnetsError
from repnets.fusion.arguments import unwrapped
from repnets.fusion.engine import FuseResult
from repnets.fusion.report import FoldedRegion
from repnets.quantization import causes
from repnets.quantization.layer_errors import Layer, LayerError, layers_of, measure, rounded_weight

HURTS = 0.05
"""Error of the logits from which a layer is said to hurt: 22 % of their standard deviation."""

_WIDE = 8.0  # times the median channel: what a channel is called wide from
_DIGITS = 4
_SENSITIVE = (
    "No identity and no gain of a batch norm makes it so: the logits hang on this layer. The stage `quantize` tries "
    "narrower ranges, and keeps it in float if that is not enough."
)


@dataclass(frozen=True)
class Weight:
    """A layer's weight, and what int8 makes of it.

    Attributes:
        largest: Largest absolute weight.
        spread: That, over the largest absolute weight of the median output channel.
        widest: The channel that holds it.
        peak: Largest absolute weight over the root mean square of its channel, in the channel where that is most.
        snr_db: Signal to noise of the rounded weight, with a scale for each output channel.
        snr_db_per_tensor: The same with one scale for all.
        snr_db_beside_tap: The same as `snr_db`, of all weights but the identity's taps, which may set the scales:
            what int8 leaves of the other branches. None where no identity was folded.
        snr_db_without_tap: What it would leave of them if there were no identity. None likewise.
        tap: The identity's tap, the centre's weight of a channel for itself, over the root mean square of the rest of
            the channel, in the median channel. None likewise.
    """

    largest: float
    spread: float
    widest: int
    peak: float
    snr_db: float
    snr_db_per_tensor: float
    snr_db_beside_tap: float | None
    snr_db_without_tap: float | None
    tap: float | None


@dataclass(frozen=True)
class Activation:
    """A layer's input, and what int8 makes of it, with one scale for all channels.

    Attributes:
        largest: Largest absolute value.
        spread: That, over the largest absolute value of the median channel; infinite where that is dead.
        widest: The channel that holds it.
        snr_db: Signal to noise of the rounded input.
        made_by: The layers whose outputs it is made of.
    """

    largest: float
    spread: float
    widest: int
    snr_db: float
    made_by: tuple[str, ...]


@dataclass(frozen=True)
class LogitError:
    """Mean square of the error of the logits over their variance, when this layer alone is int8.

    Attributes:
        weight: Of the rounded weight alone.
        input: Of the rounded input alone.
        both: Of both.
    """

    weight: float
    input: float
    both: float


@dataclass(frozen=True)
class LayerForecast:
    """A convolution or linear layer of the fused network.

    Attributes:
        name: Of the module that holds its weight.
        weight: Its weight.
        input: Its input; None without images.
        logit_error: What int8 there does to the logits; None without images.
    """

    name: str
    weight: Weight
    input: Activation | None
    logit_error: LogitError | None


@dataclass(frozen=True)
class Risk:
    """A layer that will hurt in int8.

    Attributes:
        layer: The name of the layer.
        hurts: The layer that loses its digits: itself, or one that reads what it makes.
        cause: `identity`, `gain`, `branches`, `wide channel` or `sensitive`.
        logit_error: Of `hurts`, both.
        message: What happens, by which figures, and what to do about it, as sentences.
    """

    layer: str
    hurts: str
    cause: str
    logit_error: float
    message: str


@dataclass(frozen=True)
class Forecast:
    """What int8 will do to a fused network.

    Attributes:
        images: How many it was taken from.
        reason: Why there are figures of the weights alone: "no image was given", say; None where there are all.
        logit_error: Of all layers together, were their errors independent; None where there is a reason.
        layers: All of them, in the order of the graph.
        risks: Those that will hurt, the worst first.
    """

    images: int
    reason: str | None
    logit_error: float | None
    layers: tuple[LayerForecast, ...]
    risks: tuple[Risk, ...]

    def to_dict(self) -> dict[str, object]:
        """As dicts, lists, strings and numbers of four digits; what is infinite is None."""
        return _plain(asdict(self))


def forecast(model: nn.Module, result: FuseResult, batches: Iterable[Tensor] | None = None) -> Forecast:
    """What int8 will do to each layer of a fused network.

    It costs some ten passes of the images. Errors are of first order: of a layer that all but drowns the logits the
    figure says that it does, and not by how much.

    Args:
        model: The branched network that was fused, in eval mode; it is only read, for its batch norms.
        result: From `repnets.fuse` of it.
        batches: Images as the network takes them, (N, C, *spatial) each: training images, as for calibration; a
            hundred will do. Default: none, and then there are figures of the weights alone, and no risks.
    """
    model = unwrapped(model)
    layers = layers_of(result.module)
    regions = {region.name: region for region in result.report.regions}
    batches = list(batches or [])
    found, logits, reason = {}, torch.zeros(0), None
    try:
        found, logits = measure(result.module, layers, batches)
    except RepnetsError as error:
        reason = str(error)
    power = float((logits - logits.mean()).square().sum())
    by_name: dict[str, Layer] = {}
    makers: dict[str, tuple[str, ...]] = {}
    for layer in layers:
        by_name.setdefault(layer.name, layer)
        makers[layer.name] = tuple(dict.fromkeys((*makers.get(layer.name, ()), *_makers(layer.node, layers))))
    rows = tuple(
        LayerForecast(
            name=name,
            weight=_weight(layer, _region(name, regions)),
            input=_activation(found[name], makers[name]) if found else None,
            logit_error=_error(found[name], power) if found else None,
        )
        for name, layer in by_name.items()
    )
    risks = [
        _risk(row, found[row.name], by_name, regions, model)
        for row in rows
        if row.logit_error and row.logit_error.both > HURTS
    ]
    return Forecast(
        images=sum(map(len, batches)) if found else 0,
        reason=reason,
        logit_error=sum(row.logit_error.both for row in rows if row.logit_error) if found else None,
        layers=rows,
        risks=tuple(sorted(risks, key=lambda risk: -risk.logit_error)),
    )


# Figures


def _weight(layer: Layer, region: FoldedRegion | None) -> Weight:
    weight = layer.weight.detach().double()
    rows = weight.flatten(1)
    largest = rows.abs().amax(1)
    noise = rounded_weight(weight) - weight
    rest = without = tap = None
    if region is not None and region.identities and (at := _taps(weight, region)) is not None:
        beside = rows.clone()
        beside[at] = 0
        rest = _decibels(beside.square().sum(), noise.square().sum())
        without = _decibels(beside.square().sum(), (rounded_weight(beside) - beside).square().sum())
        others = (beside.square().sum(1) / max(rows.shape[1] - 1, 1)).sqrt()
        tap = float((rows[at].abs() / others).nanmedian())
    return Weight(
        largest=float(largest.max()),
        spread=float(largest.max() / largest.median()),
        widest=int(largest.argmax()),
        peak=float((largest / rows.square().mean(1).sqrt()).nan_to_num(0).max()),
        snr_db=_decibels(weight.square().sum(), noise.square().sum()),
        snr_db_per_tensor=_decibels(
            weight.square().sum(), (rounded_weight(weight, per_tensor=True) - weight).square().sum()
        ),
        snr_db_beside_tap=rest,
        snr_db_without_tap=without,
        tap=tap,
    )


def _taps(weight: Tensor, region: FoldedRegion) -> tuple[Tensor, Tensor] | None:
    """Where, in the rows of a weight, the taps of an identity are; None where its kernel has no centre."""
    out_channels, width, *sizes = weight.shape
    if region.in_channels != region.out_channels or any(
        size % 2 == 0 or 2 * padding != (size - 1) * step
        for size, padding, step in zip(sizes, region.padding, region.dilation, strict=True)
    ):
        return None
    channels = torch.arange(out_channels)
    centre = 0
    for size in sizes:
        centre = centre * size + size // 2
    taps = weight[0, 0].numel()
    return channels, (channels % width) * taps + centre


def _activation(one: LayerError, makers: tuple[str, ...]) -> Activation:
    largest = one.largest.double()
    return Activation(
        largest=float(largest.max()),
        spread=float(largest.max() / largest.median()),
        widest=int(largest.argmax()),
        snr_db=_decibels(one.input_power, one.input_noise),
        made_by=makers,
    )


def _error(one: LayerError, power: float) -> LogitError:
    return LogitError(*(part / power for part in (one.from_weight, one.from_input, one.from_both)))


def _decibels(signal: Tensor | float, noise: Tensor | float) -> float:
    signal, noise = float(signal), float(noise)
    if noise == 0:
        return float("inf")
    return 10 * log10(signal / noise) if signal else float("-inf")


def _makers(node: fx.Node, layers: list[Layer]) -> Iterator[str]:
    """Names of the layers that make what a layer reads, nearest first, with no layer between."""
    names = {layer.node: layer.name for layer in layers}
    pending, seen = [node.args[0]], set()
    while pending:
        one = pending.pop()
        if one in seen:
            continue
        seen.add(one)
        if one in names:
            yield names[one]
        else:
            pending.extend(reversed(one.all_input_nodes))


def _region(name: str, regions: Mapping[str, FoldedRegion]) -> FoldedRegion | None:
    """The region that a layer was folded from; of a layer within another, that of the other."""
    return regions.get(name) or regions.get(name.rpartition(".")[0])


# Causes


def _risk(
    row: LayerForecast,
    one: LayerError,
    layers: Mapping[str, Layer],
    regions: Mapping[str, FoldedRegion],
    model: nn.Module,
) -> Risk:
    """What makes a layer lose so much: its own weight, or a channel of what it reads, wider than all others."""
    error, read = row.logit_error, row.input
    is_input = error.input > error.weight
    maker = layers[read.made_by[0]] if len(read.made_by) == 1 else None
    digits = f"its input, {read.snr_db:.0f} dB" if is_input else f"its weight, {row.weight.snr_db:.0f} dB"
    lost = f"{digits} in int8, costs the logits {_percent(error.both)} of their standard deviation"
    if maker is not None and len(maker.weight) == len(one.largest) and _WIDE <= read.spread >= row.weight.spread:
        layer, channel = maker, read.widest
        why = (
            "int8 has one scale for all" if is_input else "what int8 rounds off the weights that read it grows with it"
        )
        message = (
            f"Layer {layer.name!r} makes a channel that is far wider than the others, up to {read.largest:.3g}, "
            f"{read.spread:.3g} times the median channel, and {why}: of {row.name!r}, {lost}."
        )
    else:
        layer, channel = layers[row.name], row.weight.widest if is_input else int(one.by_channel.argmax())
        message = f"Layer {layer.name!r} will hurt in int8: {lost}."
    region = _region(layer.name, regions)
    weight = layer.weight.detach().double()
    at = None if region is None else _taps(weight, region)
    tap = None if at is None else float(weight.flatten(1)[at][channel])
    found = causes.of_channel(model, region, channel, weight, tap)
    if layer.name == row.name and found.cause != "gain":
        # a weight has a scale for each channel: that one is wider than the others is no reason
        parts = (row.weight.snr_db_beside_tap, row.weight.snr_db_without_tap)
        found = None if is_input else causes.of_tap(model, region, *parts)
    if found is None:
        return Risk(row.name, row.name, "sensitive", error.both, f"{message} {_SENSITIVE}")
    return Risk(layer.name, row.name, found.cause, error.both, f"{message} {found.reason} {found.remedy}")


def _percent(logit_error: float) -> str:
    """An error of the logits as it is printed: its root, the share of their standard deviation."""
    return f"{logit_error**0.5 * 100:.3g} %" if logit_error < 1 else "all"


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if isfinite(value) else None
    return value
