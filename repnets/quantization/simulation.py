"""A simulation of an int8 network: its graph has a `Rounding` wherever a tensor will be int8.

int8 values are q = round(x / scale), clamped to -127..127, and stand for q * scale: symmetric, so that every runtime
takes them. A weight has a scale for each output channel, an activation one for the whole tensor (arXiv 1806.08342).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from repnets.fusion.graph import arguments, tensor_at
from repnets.outputs import Balanced

LIMIT = 127
"""Largest int8 value that is used; -128 is not, so that the range is symmetric."""

LAYERS = (torch.ops.aten.conv2d.default, torch.ops.aten.conv_transpose2d.input, torch.ops.aten.linear.default)
"""Operators with a weight that is made int8."""


def rounded(x: Tensor, step: Tensor) -> Tensor:
    """A tensor as int8 holds it, where `step`, which broadcasts, is what 1 stands for."""
    return (x / step).round().clamp(-LIMIT, LIMIT) * step


class Rounding(nn.Module):
    """Rounds a tensor as int8 would; gradients pass where nothing was clamped ("straight through", arXiv 1308.3432).

    It stands at one place of a graph and sees one tensor. Tensors that runtimes hold with one scale, as those that are
    concatenated, have a rounding each, of one group.

    Attributes:
        group: The same for roundings that have one scale; by default it is in no other's.
        scale: float32, one, or one for each index of `axis`.
        axis: The dimension with a scale for each index; None: one scale for all.
        enabled: Where False, the tensor passes as it is.
        watch: Called with the tensor as it comes, where there is one.
    """

    def __init__(self, axis: int | None, group: int | None = None) -> None:
        super().__init__()
        self.axis = axis
        self.group = id(self) if group is None else group
        self.enabled = False
        self.watch: Callable[[Tensor], None] | None = None
        self.register_buffer("scale", torch.ones(1))
        self._weight: tuple[tuple[Tensor, int, Tensor, int], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.watch is not None:
            self.watch(x.detach())
        if not self.enabled:
            return x
        if self.axis is None:
            return torch.fake_quantize_per_tensor_affine(x, float(self.scale), 0, -LIMIT, LIMIT)
        if torch.is_grad_enabled() or x.is_inference() or self.scale.is_inference():
            return self._of_channels(x)
        now = (x, x._version, self.scale, self.scale._version)
        if self._weight is None or not _same(self._weight[0], now):
            self._weight = now, self._of_channels(x)  # a weight is the same for every batch
        return self._weight[1]

    def _of_channels(self, x: Tensor) -> Tensor:
        zeros = torch.zeros_like(self.scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(x, self.scale, zeros, self.axis, -LIMIT, LIMIT)


def _same(one: tuple[Tensor, int, Tensor, int], other: tuple[Tensor, int, Tensor, int]) -> bool:
    """Whether these are the same tensors, not written to in between."""
    return one[0] is other[0] and one[2] is other[2] and (one[1], one[3]) == (other[1], other[3])


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer that is int8.

    Attributes:
        name: Of its node.
        title: Name of the module that its weight belongs to, as the reader knows it.
        node: In the simulation's graph.
        weight: float32 (out, in / groups, ...), of the graph itself: changed in place.
        bias: float32 (out,), likewise; None where it has none.
        weight_rounding: Of the weight.
        input_rounding: Of its input.
        is_alone: Whether nothing else in the network reads its weight or its bias.
    """

    name: str
    title: str
    node: Node
    weight: Tensor
    bias: Tensor | None
    weight_rounding: Rounding
    input_rounding: Rounding
    is_alone: bool

    @property
    def groups(self) -> int:
        """1 for a linear layer."""
        return int(arguments(self.node).get("groups", 1))

    @property
    def channel_axis(self) -> int:
        """Of its output's channels: the last dimension of a linear layer's, which may have more than two."""
        return -1 if self.weight.dim() == 2 else 1

    @property
    def is_transposed(self) -> bool:
        """Whether it is a transposed convolution, whose weight is (in, out / groups, ...)."""
        return self.node.target is torch.ops.aten.conv_transpose2d.input


class Simulation:
    """A graph with roundings in it.

    Args:
        module: A graph module, float32, on the CPU, in which some submodules are `Rounding`s. Weights are changed
            in place by those who repair it.

    Attributes:
        rows: How outputs become the rows of `logits`; the same one for all simulations that are compared.
    """

    def __init__(self, module: GraphModule) -> None:
        self.module, self.rows = module, Balanced()
        self.places: dict[str, Rounding] = {
            node.name: module.get_submodule(node.target)
            for node in module.graph.nodes
            if node.op == "call_module" and isinstance(module.get_submodule(node.target), Rounding)
        }
        self.roundings: list[Rounding] = list(self.places.values())
        self._reads: Counter[str] = Counter()
        for node in module.graph.find_nodes(op="get_attr"):
            self._reads[node.target] += len(node.users)
        self.layers: list[Layer] = [layer for node in module.graph.nodes if (layer := self._layer(node)) is not None]
        weights = {id(layer.weight_rounding) for layer in self.layers}
        self.activations: list[Rounding] = [one for one in self.roundings if id(one) not in weights]

    def __call__(self, images: Tensor) -> Tensor:
        return self.module(images)

    def rounding(self, node: object) -> Rounding | None:
        """The rounding that a node of the graph is, if it is one."""
        return self.places.get(node.name) if isinstance(node, Node) else None

    def logits(self, batches: Iterable[Tensor]) -> Tensor:
        """What it gives for batches of images, one after the other: float32 (images, numbers); see `Balanced`."""
        with torch.no_grad():
            return torch.cat([self.rows(self.module(batch)) for batch in batches])

    @contextmanager
    def only(self, enabled: Iterable[Rounding]) -> Iterator[None]:
        """These roundings alone are on, for a while."""
        before = [one.enabled for one in self.roundings]
        chosen = {id(one) for one in enabled}
        for one in self.roundings:
            one.enabled = id(one) in chosen
        try:
            yield
        finally:
            for one, was in zip(self.roundings, before, strict=True):
                one.enabled = was

    def as_float(self) -> AbstractContextManager[None]:
        """No rounding is on, for a while: the network in float32."""
        return self.only(())

    def show(self, batches: Iterable[Tensor], to: Mapping[Rounding, Callable[[Tensor], None]]) -> None:
        """Run the network in float32, and give each function the tensors that come to its rounding."""
        for rounding, look in to.items():
            rounding.watch = look
        try:
            with self.as_float():
                self.logits(batches)
        finally:
            for rounding in to:
                rounding.watch = None

    def save(self) -> dict[str, Tensor]:
        """Weights and scales as they are now, for `restore`."""
        return {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Take back what was changed since `save`."""
        for rounding_name, rounding in self.module.named_modules():
            if isinstance(rounding, Rounding):
                rounding.scale = saved[f"{rounding_name}.scale"].clone()
        self.module.load_state_dict(saved)

    def _layer(self, node: Node) -> Layer | None:
        if node.target not in LAYERS:
            return None
        x, weight, *rest = node.args
        roundings = self.rounding(x), self.rounding(weight)
        if None in roundings:
            return None
        source = weight.args[0]
        bias = rest[0] if rest else None
        if any(one is not None and one.op != "get_attr" for one in (source, bias)):
            return None
        return Layer(
            name=node.name,
            title=source.target.rpartition(".")[0] or source.target,
            node=node,
            weight=tensor_at(self.module, source.target),
            bias=None if bias is None else tensor_at(self.module, bias.target),
            weight_rounding=roundings[1],
            input_rounding=roundings[0],
            is_alone=len(weight.users) == 1 and all(self._reads[one.target] == 1 for one in (source, bias) if one),
        )


def error(got: Tensor, want: Tensor) -> float:
    """Mean squared difference of logits, of their variance over all images and classes: 0 is exact, 1 is chance."""
    return float((got - want).square().mean() / want.var(correction=0).clamp_min(1e-30))
