"""What fusing did: region by region, refusal by refusal, and in total."""

from collections import defaultdict
from dataclasses import asdict, dataclass, field

from repnets.fusion.plan import Refusal
from repnets.fusion.sizes import FreeSize, in_words


@dataclass(frozen=True)
class FoldedRegion:
    """One region of the original network and the convolution that took its place.

    Attributes:
        name: Qualified name of the new layer in the fused module.
        kind: Class of the new layer: Conv1d, Conv2d, Conv3d, Linear, PooledLinear, BorderConv, which is two
            convolutions, or ScaleShift, which is none but a factor and a term for each channel: two calls. A
            transposed convolution is a ConvTranspose1d, 2d or 3d.
        output: Name of the captured graph's node whose value the convolution now makes.
        nodes: Names of the nodes folded, in the order of the graph.
        paths: Qualified names of the modules they belong to.
        branches: What is summed, by the module of each branch's last call; one where nothing is summed.
        identities: Those of the branches that are the input itself, through batch norms and factors at most.
        operations: Calls folded.
        convolutions: Convolutions folded.
        batch_norms: Batch norms folded.
        kernel_size: Of the new layer, a number for each spatial axis, as the next three; () for a linear one or none.
        stride: Step of its window.
        padding: Zeros at both ends.
        dilation: Step of its taps.
        groups: Blocks of its channels.
        output_padding: Positions that it adds at the end, of a transposed convolution; None of every other layer.
        in_channels: Channels it reads.
        out_channels: Channels it makes.
        macs_before: Multiply-accumulates at the example size that folding removes.
        macs_after: Multiply-accumulates of the new convolution at the example size.
        parameters_before: Elements of the parameters of the folded nodes.
        parameters_after: Elements of the new weight and bias.
        error_float64: Largest difference from the folded nodes, both in float64, relative to the largest
            value; the worst of two input sizes.
        error_float32: The same for the new convolution in float32 against the folded nodes in float64.
    """

    name: str
    kind: str
    output: str
    nodes: tuple[str, ...]
    paths: tuple[str, ...]
    branches: tuple[str, ...]
    identities: tuple[str, ...]
    operations: int
    convolutions: int
    batch_norms: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    output_padding: tuple[int, ...] | None
    in_channels: int
    out_channels: int
    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int
    error_float64: float
    error_float32: float


@dataclass(frozen=True)
class Totals:
    """Size of a network.

    Attributes:
        operations: Calls that make a tensor.
        convolutions: Those that are convolutions, transposed ones too.
        batch_norms: Those that are batch norms.
        additions: Those that add two tensors.
        parameters: Elements of all parameters.
        macs: Multiply-accumulates of convolutions and linear layers, for one input of the example's size.
    """

    operations: int
    convolutions: int
    batch_norms: int
    additions: int
    parameters: int
    macs: int


@dataclass(frozen=True)
class FuseReport:
    """What `fuse` folded, what it left and why. `str()` makes a table to read, `to_dict()` one for JSON.

    Attributes:
        input_shape: The shape the network takes, None where the size is free. A number is fixed: the
            network's own code ties it to the size it was captured at. Of several inputs, a shape for each.
        free: Which sizes the free axes take, by name: ``batch``, ``height``, ``width``.
        before: The network as given.
        after: The network as fused.
        regions: The convolutions made, in the order of the graph.
        refusals: What the engine knows how to fold and left, in the order of the graph.
        seconds: How long it took to capture the graph, to find its regions, to fold and emit them, and to check
            the whole.
    """

    input_shape: tuple[int | tuple[int | None, ...] | None, ...]
    free: dict[str, FreeSize]
    before: Totals
    after: Totals
    regions: tuple[FoldedRegion, ...]
    refusals: tuple[Refusal, ...]
    seconds: dict[str, float] = field(compare=False)

    def to_dict(self) -> dict[str, object]:
        """The report as dicts, lists, strings and numbers; without the seconds, so the same for the same network."""
        return {name: value for name, value in asdict(self).items() if name != "seconds"}

    def __str__(self) -> str:
        parts = [_table(_TOTALS_HEAD, _totals_rows(self.before, self.after))]
        if self.regions:
            parts.append(_table(_REGION_HEAD, [_region_row(region) for region in self.regions]))
        else:
            parts.append("nothing to fold")
        if self.refusals:
            parts.append("\n".join(["left as they are:", *_refusal_lines(self.refusals)]))
        parts.append(self._sizes())
        return "\n\n".join(parts)

    def _sizes(self) -> str:
        """Which sizes the network takes, in a line."""
        if isinstance(self.input_shape[0], tuple):
            shapes = " and ".join(map(str, self.input_shape)).replace("None", "N")
            fixed = f"batch {self.free['batch']}, all others fixed" if self.free else "all fixed"
            return f"input sizes: {fixed}, {shapes}"
        return f"input sizes: {in_words(self.input_shape, self.free)}"


_TOTALS_HEAD = ("", "operations", "convolutions", "batch norms", "additions", "parameters", "MMAC")
_REGION_HEAD = (
    *("convolution", "convs", "BNs", "kernel", "stride", "pad", "dilation", "groups", "channels"),
    *("MMAC before", "after", "float64 error", "float32 error"),
)


def _totals_rows(before: Totals, after: Totals) -> list[tuple[str, ...]]:
    return [
        (
            label,
            str(totals.operations),
            str(totals.convolutions),
            str(totals.batch_norms),
            str(totals.additions),
            f"{totals.parameters:,}",
            _millions(totals.macs),
        )
        for label, totals in (("before", before), ("after", after))
    ]


def _region_row(region: FoldedRegion) -> tuple[str, ...]:
    return (
        region.name,
        str(region.convolutions),
        str(region.batch_norms),
        *(_by(axes) for axes in (region.kernel_size, region.stride, region.padding, region.dilation)),
        str(region.groups),
        f"{region.in_channels}->{region.out_channels}",
        _millions(region.macs_before),
        _millions(region.macs_after),
        f"{region.error_float64:.1e}",
        f"{region.error_float32:.1e}",
    )


def _refusal_lines(refusals: tuple[Refusal, ...]) -> list[str]:
    by_reason: dict[str, list[str]] = defaultdict(list)
    for refusal in refusals:
        by_reason[refusal.reason].append(f"{refusal.node} ({refusal.path})" if refusal.path else refusal.node)
    return [f"  {', '.join(nodes)}: {reason}" for reason, nodes in by_reason.items()]


def _by(axes: tuple[int, ...]) -> str:
    return "x".join(map(str, axes)) or "-"


def _millions(count: int) -> str:
    return f"{count / 1e6:,.3f}"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Columns two spaces apart, the first aligned left and the numbers right."""
    columns = list(zip(head, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in (head, *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)
