"""An int8 network made as good as it gets: steps of repair in a fixed order, each kept only where it helps.

Within a step, calibration images (training data) alone decide. What costs nothing on the device is always tried: range
setting, cross-layer equalization, rounding a layer's weights together, bias correction. If the accuracy on the
validation images then is not within what is allowed, the layers that lose most are kept in float, as few as will do;
and if that is not enough, and the settings allow it, the network is trained in int8 for some epochs.
"""

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.artifacts.metric import TOP_1, Metric, allowed_drop
from pipeline.artifacts.quantize_result import Step
from pipeline.models import programs
from pipeline.models.accuracy import share_right
from pipeline.quantization import pt2e

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import GraphModule

    from repnets.quantization.simulation import Simulation


_IMAGES = 256  # for the steps that look at every layer; at once, with what all of them give


@dataclass(frozen=True)
class Training:
    """Quantization-aware training.

    Attributes:
        batches: gives float32 batches (n, 3, H, W) of training images.
        steps: how many those are.
        learning_rate: the first.
        classifies: whether the output is (images, classes).
    """

    batches: "Callable[[], Iterable[Tensor]]"
    steps: int
    learning_rate: float
    classifies: bool = True


@dataclass(frozen=True)
class Limits:
    """How far a repair may go.

    Attributes:
        max_metric_drop: the score below that of the float network; None: see `metric.allowed_drop`.
        max_float_layers: how many layers may stay in float.
        training: what to train with where nothing else helps; None: no training.
    """

    max_metric_drop: float | None
    max_float_layers: int
    training: Training | None = None


@dataclass
class Repaired:
    """A network in int8, and how it came to be.

    Attributes:
        prepared, simulation: for `pt2e.convert`.
        float_accuracy: the score of the float network on the validation images.
        steps: what was done, in order.
        sensitivities: by the name of a layer's node, where they were measured; see `repnets.quantization.sensitivity`.
        in_float: names of the nodes of layers that stay in float; by each, that of the layer for whose input it does,
            None where it is for itself.
        ways: how the ranges of activations and of weights are chosen, of `ranges.ACTIVATIONS` and `ranges.WEIGHTS`.
    """

    prepared: "GraphModule"
    simulation: "Simulation"
    float_accuracy: float
    steps: list[Step] = field(default_factory=list)
    sensitivities: dict[str, float] = field(default_factory=dict)
    in_float: dict[str, str | None] = field(default_factory=dict)
    ways: tuple[str, str] = ("max", "max")

    @property
    def accuracy(self) -> float:
        """The score of the int8 network on the validation images."""
        return self._last_kept.accuracy

    @property
    def error(self) -> float:
        """Of its logits on the calibration images."""
        return self._last_kept.error

    @property
    def _last_kept(self) -> Step:
        return next(step for step in reversed(self.steps) if step.kept)


def repair(
    network: "GraphModule",
    calibration: "Sequence[Tensor]",
    accuracy: "Callable[[Callable[[Tensor], Tensor]], float]",
    limits: Limits,
    metric: Metric = TOP_1,
) -> Repaired:
    """Quantize a network, and mend what that breaks.

    Args:
        network: from `pt2e.network`.
        calibration: float32 batches (n, 3, H, W) of training images.
        accuracy: by `metric`, on the validation images, of a function from images to logits.
        limits: when to stop.
        metric: what `accuracy` gives.

    Returns:
        The best that was reached; whether it is within the limits is for the caller to hold.
    """
    return _Repair(network, calibration, accuracy, limits, metric).run()


class _Repair:
    def __init__(
        self,
        network: "GraphModule",
        calibration: "Sequence[Tensor]",
        accuracy: "Callable[[Callable[[Tensor], Tensor]], float]",
        limits: Limits,
        metric: Metric,
    ) -> None:
        self.network, self.calibration, self.measure, self.limits = network, calibration, accuracy, limits
        self.metric = metric
        self.moments: dict[str, Tensor] = {}
        prepared = pt2e.prepare(network)
        simulation = pt2e.simulation(prepared)
        self.rows = simulation.rows
        with simulation.as_float():
            self.want = simulation.logits(calibration)
            self.done = Repaired(prepared, simulation, accuracy(simulation))
        print(f"float: it {share_right(self.done.float_accuracy, metric)}; below, the same in int8", flush=True)

    def run(self) -> Repaired:
        seen = self._observed()
        self._naive(seen)
        self._ranges(seen)
        self._equalization(seen)
        self._rounding()
        self._bias()
        if not self._holds():
            self._keep_in_float()
        if not self._holds() and self.limits.training:
            self._train(self.limits.training)
        return self.done

    def _holds(self) -> bool:
        before = self.done.float_accuracy
        return before - self.done.accuracy <= allowed_drop(self.limits.max_metric_drop, self.metric, before)

    def _error(self) -> float:
        from repnets.quantization.simulation import error

        return error(self.done.simulation.logits(self.calibration), self.want)

    def _accuracy(self) -> float:
        """Of the program that would be written now: with biases as integer runtimes hold them."""
        from repnets.quantization.ranges import snap_biases

        simulation = self.done.simulation
        start = simulation.save()
        snap_biases(simulation)
        reached = self.measure(simulation)
        simulation.restore(start)
        return reached

    def _note(
        self, name: str, how: str, kept: bool = True, error: float | None = None, accuracy: float | None = None
    ) -> None:
        """Write a step down; `error` and `accuracy` where they are known, since each takes a pass of all its images."""
        error = self._error() if error is None else error
        accuracy = self._accuracy() if accuracy is None else accuracy
        step = Step(name, how, error, accuracy, kept)
        self.done.steps.append(step)
        print(step.told(self.metric), flush=True)

    def _naive(self, seen: Any) -> None:
        from repnets.quantization import ranges

        ranges.set_activations(seen, "max")
        ranges.set_weights(self.done.simulation, "max", per_tensor=True)
        self._note("naive, one scale a weight", "largest values", kept=False)
        ranges.set_weights(self.done.simulation, "max")
        self._note("naive, one scale a channel", "largest values")

    def _observed(self) -> Any:
        from repnets.quantization import ranges

        return ranges.observe(self.done.simulation, self.calibration)

    def _ranges(self, seen: Any) -> None:
        from repnets.quantization import ranges

        naive, reached = self.done.ways, self.done.accuracy
        choices = [(one, other) for one in ranges.ACTIVATIONS for other in ranges.WEIGHTS]
        errors = {ways: self.done.error if ways == naive else self._error_of(seen, ways) for ways in choices}
        self.done.ways = min(choices, key=errors.__getitem__)
        self._set(seen)
        accuracy = reached if self.done.ways == naive else None
        told = "activations by {}, weights by {}".format(*self.done.ways)
        self._note("range setting", told, error=errors[self.done.ways], accuracy=accuracy)

    def _set(self, seen: Any) -> None:
        from repnets.quantization import ranges

        ranges.set_activations(seen, self.done.ways[0])
        ranges.set_weights(self.done.simulation, self.done.ways[1])

    def _error_of(self, seen: Any, ways: tuple[str, str]) -> float:
        self.done.ways = ways
        self._set(seen)
        return self._error()

    def _equalization(self, seen: Any) -> None:
        from repnets.quantization import equalization

        simulation = self.done.simulation
        if not equalization.pairs(simulation):
            print("equalization: no two layers follow each other with a ReLU or a mean alone between them", flush=True)
            return
        before, start = self.done.error, simulation.save()
        tried = []
        for share in equalization.SHARES:
            simulation.restore(start)
            count = equalization.equalize(simulation, seen, share)
            self._set(self._observed())
            tried.append((self._error(), f"{count} pairs of layers, share {share}", simulation.save()))
        error, how, best = min(tried, key=lambda one: one[0])
        simulation.restore(best)
        self._keep_or_restore("equalization", how, before, start, error)

    def _rounding(self) -> None:
        """From here on the network's own weights are the equalized ones, which alone make the float network."""
        from repnets.quantization import rounding

        pt2e.copy_tensors(self.done.simulation.module, self.network)
        before, start = self.done.error, self.done.simulation.save()
        self.moments = rounding.second_moments(self.done.simulation, [self._images()])
        count = rounding.round_together(self.done.simulation, self.moments)
        if not self._keep_or_restore("rounding together", f"the weights of {count} layers", before, start):
            self.moments = {}

    def _bias(self) -> None:
        start = self.done.simulation.save()
        before, count = self.done.error, self._correct()
        self._keep_or_restore("bias correction", f"{count} layers", before, start)

    def _correct(self) -> int:
        from repnets.quantization import bias

        return bias.correct(self.done.simulation, self._images())

    def _images(self) -> "Tensor":
        import torch

        return torch.cat(list(self.calibration))[:_IMAGES]

    def _correct_if_it_helps(self) -> None:
        before, start = self._error(), self.done.simulation.save()
        self._correct()
        if self._error() >= before:
            self.done.simulation.restore(start)

    def _keep_or_restore(
        self, name: str, how: str, before: float, start: "dict[str, Tensor]", error: float | None = None
    ) -> bool:
        error = self._error() if error is None else error
        self._note(name, how, error < before, error)
        if not error < before:
            self.done.simulation.restore(start)
        return error < before

    def _keep_in_float(self) -> None:
        """The layers that lose most, 1, 2, 4 and so on of them, until the accuracy is within the limits."""
        from repnets.quantization import sensitivity

        corrected = self.done.simulation, self.done.prepared
        self._start_again({})
        few = self.calibration[:1]  # a batch will do to put them in order, and each layer takes a pass
        simulation, want = self.done.simulation, self.want[: len(few[0])]
        self.done.sensitivities = sensitivity.sensitivities(simulation, few, want)
        most = min(self.limits.max_float_layers, len(self.done.sensitivities) - 1)
        order = sensitivity.in_order(simulation, self.done.sensitivities, few, want, most)
        self.done.simulation, self.done.prepared = corrected
        for count in _doubling(most):
            self._start_again(dict(list(order.items())[:count]))
            self._correct_if_it_helps()
            self._note("layers in float", ", ".join(programs.title(self.network, one) for one in self.done.in_float))
            if self._holds():
                return

    def _start_again(self, in_float: dict[str, str | None]) -> None:
        """The equalized network with fresh scales, and some layers in float; the others are rounded as they were."""
        from repnets.quantization import rounding

        self.done.in_float = in_float
        self.done.prepared = pt2e.prepare(self.network, in_float)
        self.done.simulation = pt2e.simulation(self.done.prepared)
        self.done.simulation.rows = self.rows
        self._set(self._observed())
        rounding.round_together(self.done.simulation, self.moments)

    def _train(self, training: Training) -> None:
        from repnets.quantization.training import distil

        simulation, reached = self.done.simulation, (self.done.accuracy, -self.done.error)
        start, losses = simulation.save(), []
        learning = distil(
            simulation, self.network, training.batches(), training.steps, training.learning_rate, training.classifies
        )
        for number, loss in enumerate(learning, start=1):
            losses.append(loss)
            if number % max(1, training.steps // 10) == 0:
                recent = statistics.mean(losses[-20:])
                print(f"training in int8: step {number} of {training.steps}, loss {recent:.3e}", flush=True)
        error, accuracy = self._error(), self._accuracy()
        kept = (accuracy, -error) > reached
        self._note("training in int8", f"{training.steps} steps", kept, error, accuracy)
        if not kept:
            simulation.restore(start)


def _doubling(most: int) -> Iterator[int]:
    """1, 2, 4 and so on, and `most` at last."""
    count = 1
    while count < most:
        yield count
        count *= 2
    if most:
        yield most
