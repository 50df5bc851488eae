"""What an exported file is held against: the validation set, and what the program it came from gives for it."""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts.export_result import Manifest, TensorFacts
from pipeline.artifacts.manifest import ExportSpec, Preprocessing, image_size_of
from pipeline.data import transforms
from pipeline.data.splits import Split
from pipeline.errors import GateError
from pipeline.models import program_file, programs, several_inputs
from pipeline.models.accuracy import score_of, task_of
from pipeline.verification import compare

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn
    from torch.export import ExportedProgram

_BATCH = 64
_EXACT_IMAGES = 64
_STEPS = 4  # float32 numbers, by which a sum of 500 products of random signs is off


@dataclass(frozen=True)
class Reference:
    """A program at a file's input size, and the images that go through both.

    Attributes:
        source: the program: artifacts/<model>/fused.pt2, or quantized.pt2.
        split: its validation part is the images.
        spec: precision, input shape and preprocessing of the file.
        whole_pixels: whether the file takes an image of 8-bit pixels, so that both sides are given such.
        weights: by the parameter's name, those that take the place of the program's: a file's own, where it compresses
            them.
        judge: of images without labels, what the program is held against; None: itself.
    """

    source: Path
    split: Split
    spec: ExportSpec
    whole_pixels: bool = False
    weights: "Mapping[str, np.ndarray]" = field(default_factory=dict)
    judge: "Reference | None" = None
    _stored: "dict[str, np.ndarray]" = field(default_factory=dict, init=False, repr=False, compare=False)
    _last_digits: dict[str, tuple[float, float]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def images(self) -> "Iterator[np.ndarray]":
        """All validation images in order, preprocessed, as float32 pieces (m, 3, H, W), or samples (m, numbers).

        They need not fit in memory.
        """
        for images, _ in self._batches():
            yield images.numpy()

    def as_stored_in(self, file: Path, read: "Callable[..., Mapping[str, np.ndarray]]") -> "Reference":
        """The same with the weights of a file, by its backend's `stored_weights`, which holds them against these."""
        module = programs.graph_module(self.program)
        layers, values = programs.weighted_layers(module), dict(programs.constants(module))
        own = {layer: values[name].detach().numpy() for layer, name in layers.items()}
        stored = read(file, self.spec.precision, own)
        return replace(self, weights={layers[layer]: one for layer, one in stored.items()}) if stored else self

    def image(self, index: int) -> "np.ndarray":
        """One validation image, as often as the file's batch has room: float32 of the file's input shape."""
        import numpy as np

        begin = 0
        for images, _ in self._batches():
            if index < begin + len(images):
                return np.repeat(images[index - begin :][:1].numpy(), self.spec.input_shape[0], axis=0)
            begin += len(images)
        raise IndexError(f"the validation split has {begin} images, and none of index {index}")

    @cached_property
    def program(self) -> "ExportedProgram":
        """The network at the file's input shape: what its exporter was given."""
        return programs.static(self._module, *self.spec.inputs.values())

    @cached_property
    def outputs(self) -> tuple[TensorFacts, ...]:
        """What the program gives."""
        return programs.output_facts(self.program, self.split.is_of_classifier)

    @cached_property
    def numbers(self) -> "np.ndarray":
        """float32 (images, numbers): what the program gives for the whole validation set, of classifiers the logits."""
        return self._answers[0]

    @property
    def labels(self) -> "np.ndarray":
        """int64 (images,): the classes of the validation images; of those without, what the float network says."""
        if not self.split.has_labels:
            return (self.judge or self).numbers.argmax(1)
        return self._answers[1]

    def score(self, numbers: "np.ndarray") -> float:
        """What the metric says of some (images, numbers) for the validation set; see `accuracy.metric_of`."""
        import torch

        want = (self.judge or self).numbers
        targets = torch.from_numpy(self._answers[1])
        return score_of(self.split, self.spec.preprocessing, self.tensors(numbers), self.tensors(want), targets)

    def agreement(self, numbers: "np.ndarray") -> float:
        """How alike some (images, numbers) and those of the program are by the task; without one it is `score`."""
        task = task_of(self.split, self.spec.preprocessing)
        return task.agreement(self.tensors(numbers), self.tensors(self.numbers)) if task else self.score(numbers)

    def tensors(self, numbers: "np.ndarray") -> "list[torch.Tensor]":
        """(images, numbers) of all outputs as each output, the first axis the image."""
        import torch

        parts = zip(compare.parts(numbers, self.outputs), self.outputs, strict=True)
        return [torch.from_numpy(part).reshape(len(part), *one.shape[1:]) for part, one in parts]

    @property
    def accuracy(self) -> float:
        """Of the program on the validation set."""
        return self.score(self.numbers)

    def _error(self, got: "torch.Tensor", want: "torch.Tensor") -> float:
        """Largest difference of some (images, numbers), each of its output's largest value wanted."""
        return compare.compare(got.double().numpy(), want.double().numpy(), self.outputs).relative_error

    @cached_property
    def exact(self) -> "tuple[np.ndarray, np.ndarray, float]":
        """Some images; the numbers that the program gives for them in float64, with its weights rounded as the file
        stores them; and how far float32 is from that by itself, of the largest logit."""
        import torch

        images = self._first_images()
        module = programs.with_rounded_weights(self._module, self.spec.precision, self.weights)
        with torch.inference_mode():
            single = self._run(module, images)
            double = self._run(copy.deepcopy(module).double(), images.double())
        return images.numpy(), double.numpy(), self._error(single, double)

    def stored(self, precision: str) -> "tuple[np.ndarray, np.ndarray]":
        """The same images, and the numbers that the program gives for them in float32 where its numbers that are not
        int8 are rounded to a precision."""
        import torch

        images = self._first_images()
        if precision == "fp32":
            return images.numpy(), self.numbers[: len(images)]
        if precision not in self._stored:
            with torch.inference_mode():
                numbers = self._run(programs.with_rounded_weights(self._module, precision), images)
            self._stored[precision] = numbers.numpy()
        return images.numpy(), self._stored[precision]

    @cached_property
    def effect_of_rounded_numbers(self) -> float:
        """How far what is given for these images moves, of the largest, where all numbers of the program are rounded to
        half precision and not its layers' weights alone: a converter rounds some of them."""
        import torch

        images, precision = self._first_images(), self.spec.precision
        weights = programs.with_rounded_weights(self._module, precision, self.weights, of_layers_alone=True)
        all_numbers = programs.with_rounded_numbers(
            programs.with_rounded_weights(self._module, precision, self.weights)
        )
        with torch.inference_mode():
            return self._error(self._run(all_numbers, images), self._run(weights, images))

    def last_digits(self, precision: str) -> tuple[float, float]:
        """How far the numbers of an int8 program move by the last digits of float32 alone, of the largest logit: on
        average over the same images, and at most.

        A value in the middle between two integers goes one way or the other, and what follows amplifies it: the deeper
        the network, the more. Torch computes it again, without oneDNN's convolutions, which sum in another order, and
        with a neighbour of each value that is made an integer, above it and below; where numbers are rounded, also with
        those of other operations than layers as they were, which converters round or leave: a PReLU's slopes, say.

        Args:
            precision: of the numbers that are not int8; rounded to half, many more values lie in such a middle.
        """
        import torch

        if precision not in self._last_digits:
            images, want = self.stored(precision)
            module, outputs, found = programs.with_rounded_weights(self._module, precision), self.outputs, []
            ways = [partial(programs.with_neighbours, module, steps) for steps in (-_STEPS, _STEPS)]
            if precision == "fp16" and programs.weights_beside_layers(self._module):
                ways.append(partial(programs.with_rounded_weights, self._module, precision, of_layers_alone=True))
            with warnings.catch_warnings(), torch.inference_mode():
                warnings.simplefilter("ignore", UserWarning)  # setting one flag sets another, of Intel's GPUs
                for moved in ways:
                    with torch.backends.mkldnn.flags(enabled=False):
                        got = self._run(moved(), torch.from_numpy(images)).numpy()
                    error = compare.compare(got, want, outputs).relative_error
                    found.append((compare.mean_error(got, want, outputs), error))
            self._last_digits[precision] = max(one for one, _ in found), max(one for _, one in found)
        return self._last_digits[precision]

    def outputs_by_layer(self, image: "np.ndarray", exact: bool) -> "dict[str, np.ndarray]":
        """What each layer should give for an image, by its name: in float32, with rounded weights where `exact`."""
        module = programs.graph_module(self.program)
        if exact:
            module = programs.with_rounded_weights(module, self.spec.precision, self.weights)
        return programs.outputs_of(module, image)

    @cached_property
    def loss_in_half(self) -> float:
        """How far the numbers of the program move, of the largest, when torch computes it in half precision."""
        import torch

        module = copy.deepcopy(self._module).half()
        with torch.inference_mode():
            halves = [self._run(module, images.half()).float() for images, _ in self._batches()]
        return self._error(torch.cat(halves), torch.from_numpy(self.numbers))

    @cached_property
    def _module(self) -> Any:
        module = programs.as_module(program_file.read(self.source)[0])
        return programs.with_rounded_weights(module, self.spec.precision, self.weights) if self.weights else module

    @cached_property
    def _answers(self) -> "tuple[np.ndarray, np.ndarray]":
        import torch

        numbers, labels = [], []
        with torch.inference_mode():
            for images, classes in self._batches():
                numbers.append(self._run(self._module, images))
                labels.append(classes)
        if not labels:
            raise GateError("the validation split holds no image, so nothing could be compared.")
        return torch.cat(numbers).numpy(), torch.cat(labels).numpy()

    def _run(self, module: "nn.Module", images: "torch.Tensor") -> "torch.Tensor":
        """(images, numbers) of all images, some at a time."""
        import torch

        from repnets.outputs import rows

        module = several_inputs.of_samples(module, self.spec.preprocessing)
        return torch.cat([rows(module(part)) for part in images.split(_BATCH)])

    def _first_images(self) -> "torch.Tensor":
        import torch

        taken: list[torch.Tensor] = []
        for images, _ in self._batches():
            taken.append(images)
            if sum(map(len, taken)) >= _EXACT_IMAGES:
                break
        return torch.cat(taken)[:_EXACT_IMAGES]

    def _batches(self) -> "Iterator[tuple[torch.Tensor, torch.Tensor]]":
        for images, labels in self.split.batches("val", self.spec.preprocessing, _BATCH):
            yield (transforms.whole(images, self.spec.preprocessing) if self.whole_pixels else images), labels


def spec_of(written: Manifest, preprocessing: Preprocessing) -> ExportSpec:
    """What export was asked for, by its manifest, with the network's own preprocessing."""
    shape = written.sample_shape
    if preprocessing.inputs is None:
        preprocessing = replace(preprocessing, image_size=image_size_of(shape))
    return ExportSpec(written.precision, shape, preprocessing)
