"""Make the fused network int8: one program, from which the files of every int8 target are made.

Weights and activations are int8 and symmetric, with a scale for each output channel of a weight and one for a whole
activation. Ranges come from training images, prepared as for inference, never augmented, never from what is held
out. What int8 breaks is repaired, step by step; docs/int8.md says how. quantized.pt2 is a torch.export program like
fused.pt2; quantize.json says what each step did, which layers are in float and why, and which images it was made with.

Gate: the score of the int8 program on the validation images, by the task's metric, is within
`quantize.max_metric_drop` of the fused network's. Where int8 is only tried, for targets of `precision: auto`, a program
that loses more is written too, and quantize.json says so: then int8 is not chosen.
"""

import hashlib
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.artifacts import digests, documents, evidence, store
from pipeline.artifacts.digests import Inputs
from pipeline.artifacts.manifest import Preprocessing, versions
from pipeline.artifacts.metric import Metric, allowed_drop, shown
from pipeline.artifacts.quantize_result import (
    Calibration,
    FloatLayer,
    InFloat,
    QuantizedAccuracy,
    QuantizeResult,
    Rounding,
    Scheme,
)
from pipeline.artifacts.verify_result import VerifyResult
from pipeline.config.stages import QuantizeSettings
from pipeline.data import datasets, splits, training_batches
from pipeline.errors import GateError, InputError, first_line
from pipeline.models import program_file, programs, several_inputs
from pipeline.models.accuracy import METRIC_PACKAGES, metric_of, scorer, share_right
from pipeline.quantization import pt2e, ptq

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import GraphModule

_PACKAGES = ("torch", "torchao", "executorch")
_FEW = 128
_SHOWN = 5
_BATCH = 64
_LARGEST = 1e18  # value whose square float32 still holds


def run(settings: QuantizeSettings, *, fused: Path, verify: Path, split: Path, quantized: Path, report: Path) -> None:
    """Quantize one network.

    Args:
        settings: how many images, and how far the repair may go.
        fused: artifacts/<model>/fused.pt2.
        verify: artifacts/<model>/verify.json, for the preprocessing; the gate must have held for this fused.pt2.
        split: artifacts/split.json; its train part calibrates, its validation part is the gate.
        quantized: where the int8 program goes, a .pt2 file.
        report: where quantize.json goes.

    Raises:
        InputError: there is no training image, the network does not take images of that size, or verify.json is of
            another fused.pt2 or split.
        GateError: the accuracy cannot be held; says what was reached, by which layers it is lost and what to try.
    """
    inputs = Inputs({"fused": fused, "verify": verify, "split": split})
    store.cached(
        "quantize",
        settings=settings.model_dump(mode="json"),
        inputs=inputs,
        outputs={"quantized": quantized, "report": report},
        code=("pipeline.stages.quantize",),
        packages=(*_PACKAGES, "torchvision", "pillow", "scikit-learn", *METRIC_PACKAGES),
        build=lambda places, _: _quantize(settings, inputs, places),
    )
    print(_headline(documents.read(QuantizeResult, report)), flush=True)


def _quantize(settings: QuantizeSettings, inputs: Inputs, places: dict[str, Path]) -> None:
    fused, verify = inputs.paths["fused"], inputs.paths["verify"]
    preprocessing = evidence.read(VerifyResult, verify, inputs, "fused", "split").preprocessing
    program, lineage = program_file.read(fused)
    images = splits.open_split(inputs.paths["split"])
    calibration, about = _calibration(images, settings.calibration_images, preprocessing)
    network, metric = pt2e.network(program, preprocessing.inputs), metric_of(images)
    _require_usable(network, calibration[0][:1], fused)
    accuracy = scorer(network, images, preprocessing, _BATCH)
    limits = ptq.Limits(settings.max_metric_drop, settings.max_float_layers, _training(settings, images, preprocessing))
    done = ptq.repair(network, calibration, accuracy, limits, metric)
    outside = pt2e.in_float(done.prepared)
    written = pt2e.convert(done.prepared, done.simulation, preprocessing.shape(2), preprocessing.inputs)
    # what the fused network asserts of its sizes is not in the one that was quantized
    programs.narrow(written, program)
    reached = accuracy(several_inputs.of_samples(programs.as_module(written), preprocessing))
    result = _result(done, reached, metric, about, outside, lineage | {"fused": inputs.sha256["fused"]})
    if not done.float_accuracy - reached <= allowed_drop(settings.max_metric_drop, metric, done.float_accuracy):
        if not settings.may_lose:
            raise GateError(_refusal(fused, settings, result))
        result = replace(result, status="lost", reason=_refusal(fused, settings, result))
    lineage = program_file.write(written, places["quantized"], {**result.lineage, "int8": documents.plain(about)})
    subjects = inputs.sha256 | {"quantized": digests.digest(places["quantized"])}
    result = replace(result, subjects=subjects, lineage={**result.lineage, "free": lineage["free"]})
    documents.write(places["report"], result)


def _calibration(images: splits.Split, wanted: int, preprocessing: Preprocessing) -> "tuple[list[Tensor], Calibration]":
    """Batches of training images, and what tells which they were."""
    sample = images.sample("train", wanted)
    count = sample.size("train")
    if images.name == datasets.NONE:
        raise InputError(
            "int8 takes its ranges from pictures such as the device will see, and `data.name` is none. Give a folder "
            "of them, `data: {name: pictures, root: FOLDER}`, without labels; or leave out the targets of int8."
        )
    if not count:
        raise InputError("the train part of the split holds no image, so there is nothing to calibrate int8 with.")
    if count < _FEW:
        print(
            f"warning: {count} images are few to take ranges from; a range that they do not show is cut off. "
            f"Take {_FEW} or more (quantize.calibration_images, or more training images).",
            file=sys.stderr,
        )
    batches = [batch for batch, _ in sample.batches("train", preprocessing, _BATCH)]
    seen = hashlib.sha256(b"".join(batch.numpy().tobytes() for batch in batches)).hexdigest()
    return batches, Calibration(count, "train", augmented=False, digest=seen)


def _require_usable(network: "GraphModule", image: "Tensor", fused: Path) -> None:
    try:
        given = programs.outputs_of(network, image.numpy())
    except Exception as error:
        raise InputError(
            f"{fused} does not take the calibration images, of shape {tuple(image.shape)}: {first_line(error)}. They "
            "are prepared as verify.json says; build both again: snakemake --forcerun reparameterize."
        ) from error
    largest = {name: abs(value).max(initial=0) for name, value in given.items()}
    name = next((name for name, value in largest.items() if not value < _LARGEST), None)
    if name is not None:
        raise InputError(
            f"{fused}: `{programs.title(network, name)}` gives values up to {largest[name]:.1e}. Their squares, by "
            "which the ranges of int8 are chosen, are beyond float32. Look at that layer's weights; fuse.json lists "
            "batch norms that are out of the ordinary, under `bn_health`."
        )


def _training(settings: QuantizeSettings, images: splits.Split, preprocessing: Preprocessing) -> "ptq.Training | None":
    if not settings.qat_epochs:
        return None
    if preprocessing.inputs is not None:
        raise InputError(
            f"`quantize.qat_epochs` trains on images, and the network takes several inputs, "
            f"{' and '.join(one.name for one in preprocessing.inputs)}. Set it to 0."
        )

    def batches() -> "Iterator[Tensor]":
        for epoch in range(settings.qat_epochs):
            epoch_batches = training_batches.batches(images, preprocessing, batch_size=_BATCH, seed=0, epoch=epoch)
            yield from (batch for batch, _ in epoch_batches)

    steps = settings.qat_epochs * training_batches.steps(images, _BATCH)
    return ptq.Training(batches, steps, settings.qat_learning_rate, images.is_of_classifier)


def _result(
    done: ptq.Repaired,
    reached: float,
    metric: Metric,
    about: Calibration,
    outside: dict[str, int],
    lineage: dict[str, str],
) -> QuantizeResult:
    """Of a program that holds its gate, before it is written: its `subjects` are not known yet."""

    def named(node: str) -> str:
        return programs.title(done.simulation.module, node)

    usual = statistics.median(done.sensitivities.values()) if done.sensitivities else None
    kept = [
        FloatLayer(
            named(name),
            f"alone in int8 it moves the logits by {done.sensitivities[name]:.1e} of their variance, "
            f"a layer in the middle by {usual:.1e}"
            if giving_to is None
            else f"what it gives would be int8 with it, and {named(giving_to)}, which reads that, loses most by it",
        )
        for name, giving_to in done.in_float.items()
    ]
    return QuantizeResult(
        status="ok",
        reason=None,
        subjects={},
        scheme=Scheme(
            weights=Rounding("int8", True, "output channel", done.ways[1]),
            activations=Rounding("int8", True, "tensor", done.ways[0]),
        ),
        calibration=about,
        accuracy=QuantizedAccuracy(done.float_accuracy, reached, metric),
        steps=tuple(done.steps),
        layers=tuple(layer.title for layer in done.simulation.layers),
        in_float=InFloat(tuple(kept), outside),
        sensitivity={named(name): error for name, error in done.sensitivities.items()},
        lineage=lineage,
        versions=versions(*_PACKAGES),
    )


def _refusal(fused: Path, settings: QuantizeSettings, result: QuantizeResult) -> str:
    """What was reached, where it is lost, and what to try."""
    accuracy, metric = result.accuracy, result.accuracy.metric
    allowed = allowed_drop(settings.max_metric_drop, metric, accuracy.fused)
    worst = ", ".join(f"{layer} ({error:.1e})" for layer, error in list(result.sensitivity.items())[:_SHOWN])
    tries = [f"`quantize.max_float_layers` above {settings.max_float_layers}"]
    tries += [f"`quantize.qat_epochs` above {settings.qat_epochs}"]
    tries += ["a network that is made for int8 (arch qarepvgg_a0 in place of repvgg_a0)"]
    tries += ["another precision in target.yaml (fp16)"]
    return (
        f"{fused}: in int8 it {share_right(accuracy.quantized, metric)}, in float32 "
        f"{shown(accuracy.fused, metric)}; allowed is a drop of {shown(allowed, metric)} (quantize.max_metric_drop). "
        f"That is the best of {len(result.steps)} steps, which the log has. The layers that lose most, by what "
        f"each alone does to the logits, of their variance: {worst}. fuse.json says why, under `forecast`. Try "
        f"{'; or '.join(tries)}."
    )


def _headline(result: QuantizeResult) -> str:
    accuracy, kept = result.accuracy, result.in_float
    line = (
        f"int8: {len(result.layers)} layers; it {share_right(accuracy.quantized, accuracy.metric)}; "
        f"in float {shown(accuracy.fused, accuracy.metric)}"
    )
    if result.status == "lost":
        line += f"\n  lost: {result.reason}"
    if kept.layers:
        line += f"\n  in float: {', '.join(one.layer for one in kept.layers)}"
    if kept.operations:
        listed = ", ".join(f"{count} {name}" for name, count in kept.operations.items())
        line += f"\n  not known to XNNPACK's quantizer, so in float too: {listed}"
    return line
