"""Read a checkpoint that was trained elsewhere, instead of training one.

    python -m pipeline adopt --model repvgg_a0 --source mine.pth --split artifacts/split.json \\
        --checkpoint artifacts/repvgg_a0/checkpoint.safetensors

The file is a .safetensors, or a .pth, .pt or .ckpt of which only the weights are read: code in it never runs. Its
keys may be those of repnets, of the official RepVGG and MobileOne, or of timm, in training or in deploy form, and may
all have a prefix (`module.`, `_orig_mod.`, `model.`). Every tensor of the network must be there, and no other; the
number of classes must be that of the data set; no value may be NaN. Where the images have labels, the accuracy on the
validation images is measured and printed: if it is no better than guessing, the order of the classes or the
preprocessing is not the one that the network was trained with.

The result is a checkpoint like that of the stage `train`. If it is of the deploy form, its header says so: it has the
weights of the fused network, and there is no branched network.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.artifacts import digests, store
from pipeline.artifacts.checkpoint_header import CheckpointHeader
from pipeline.artifacts.manifest import Preprocessing
from pipeline.config.stages import AdoptSettings
from pipeline.data import class_order, splits
from pipeline.errors import InputError
from pipeline.models import checkpoints, external_checkpoints, networks, several_inputs
from pipeline.models.accuracy import (
    METRIC_PACKAGES,
    better_order,
    metric_of,
    predictions,
    require_fits,
    scorer,
    share_right,
)
from pipeline.models.training import score_name

if TYPE_CHECKING:
    from torch import nn


def run(settings: AdoptSettings, *, source: Path, split: Path, checkpoint: Path) -> None:
    """Make a checkpoint from a file of the user's.

    Args:
        settings: the network, and its preprocessing.
        source: the file.
        split: artifacts/split.json: the classes of the network, and validation images for its accuracy.
        checkpoint: where checkpoint.safetensors goes.

    Raises:
        InputError: the file is missing, damaged, contains code, or does not fit the network or the data set.
    """
    if not source.is_file():
        raise InputError(f"{source} does not exist. Check `checkpoint:` of the model `{settings.arch}` in config.yaml.")
    folded = external_checkpoints.form_of(source, settings.arch) == "deploy"
    store.cached(
        "adopt",
        settings={**settings.model_dump(), "suffix": source.suffix},
        inputs={"source": source, "split": split},
        outputs={"checkpoint": checkpoint},
        code=("pipeline.stages.adopt", *networks.code_modules(settings.arch, folded)),
        packages=("torch", "torchvision", "safetensors", *METRIC_PACKAGES),
        build=lambda outputs, _: _adopt(settings, source, split, outputs["checkpoint"]),
    )


def _adopt(settings: AdoptSettings, source: Path, split: Path, checkpoint: Path) -> None:
    images = splits.open_split(split)
    state, weights, header = external_checkpoints.read(source)
    preprocessing = images.preprocessing(**settings.of_images)
    if header is not None:
        preprocessing = _check_header(header, settings, preprocessing, source)
    model, form = external_checkpoints.network(
        state, settings.arch, len(images.classes), str(source), preprocessing.channels
    )
    if preprocessing.inputs is not None:
        inputs = networks.in_order(model, settings.arch, preprocessing.inputs)
        preprocessing = replace(preprocessing, inputs=inputs)
    networks.require_runs(model, settings.arch, preprocessing)
    of_samples = several_inputs.of_samples(model, preprocessing)
    require_fits(of_samples, settings.arch, images, preprocessing)
    metrics = _metrics(of_samples, images, preprocessing, source) if images.has_labels else {}
    if not metrics:
        print(f"adopt: {source.name} is taken as it is: the images have no labels, so nothing says how good it is")
    made = CheckpointHeader(
        arch=settings.arch,
        num_classes=len(images.classes),
        preprocessing=preprocessing,
        data_digest=images.digest,
        epoch=header.epoch if header else None,
        weights=weights,
        form=form,
        seed=header.seed if header else None,
        processes=header.processes if header else None,
        metrics=metrics,
        adopted_from=digests.digest(source),
    )
    checkpoints.write(checkpoint, model.state_dict(), made)


def _metrics(model: "nn.Module", images: splits.Split, preprocessing: Preprocessing, source: Path) -> dict[str, float]:
    """The score on the validation images by its name, which is printed."""
    if images.is_of_classifier:
        return {"val_accuracy": _accuracy(model, images, preprocessing, source)}
    metric = metric_of(images)
    score = scorer(model, images, preprocessing)(model)
    print(f"adopt: {source.name} {share_right(score, metric)}", flush=True)
    return {score_name(metric): score}


def _accuracy(model: "nn.Module", images: splits.Split, preprocessing: Preprocessing, source: Path) -> float:
    """Top-1 on the validation images; warns where the classes seem to be in another order, or it guesses."""
    guessed, labels = predictions(model, images, preprocessing)
    accuracy = int((guessed == labels).sum()) / len(labels)
    print(
        f"adopt: {source.name} is right on {accuracy:.2%} of {images.size('val')} validation images",
        flush=True,
    )
    if better := better_order(guessed, labels, len(images.classes)):
        order = [images.classes[label] for label in better[0]]
        print(_another_order(order, images.classes, *better), file=sys.stderr)
    elif accuracy <= 1.5 / len(images.classes):
        print(
            f"warning: that is no better than guessing among {len(images.classes)} classes. Compare the "
            "order of the classes and the preprocessing (size, mean, std) with those that the network was "
            "trained with.",
            file=sys.stderr,
        )
    return accuracy


def _another_order(order: list[str], classes: Sequence[str], labels: Sequence[int], accuracy: float) -> str:
    """The warning about a network whose classes are in another order than the data set's."""
    number = next(number for number, label in enumerate(labels) if number != label)
    known = "natural" if tuple(order) == class_order.natural(classes) else json.dumps(order, ensure_ascii=False)
    return (
        f"warning: the network fits another order of the classes much better: {accuracy:.2%}. Its class {number} is "
        f"`{order[number]}`, say, and not `{classes[number]}`. If it was trained in that order, set it for an "
        f"imagefolder: `data: {{classes: {known}}}`, or name the JSON file that came with the checkpoint there."
    )


def _check_header(
    header: CheckpointHeader, settings: AdoptSettings, preprocessing: Preprocessing, source: Path
) -> Preprocessing:
    """Check the header of a file of this pipeline; its mean and std are kept, unless others are configured."""
    if header.arch != settings.arch:
        raise InputError(
            f"{source} holds a `{header.arch}`, but the model's `arch` is `{settings.arch}`. Set `arch: {header.arch}`."
        )
    own = header.preprocessing
    if own.color_order != preprocessing.color_order:
        raise InputError(
            f"{source} was trained on images in {own.color_order}, but they would be in {preprocessing.color_order}. "
            f"Set `color_order: {own.color_order}` under its name in `models:`."
        )
    if own.inputs != preprocessing.inputs:
        told, wanted = (
            " and ".join(f"{one.name} {list(one.shape)}" for one in how.inputs) if how.inputs else "one image"
            for how in (own, preprocessing)
        )
        raise InputError(
            f"{source} is of a network that takes {told}, but `inputs` in config.yaml says {wanted}. Set `inputs` to "
            "what it takes."
        )
    if len(own.classes) != len(preprocessing.classes):
        raise InputError(
            f"{source} tells {len(own.classes)} classes apart, but the data set has "
            f"{len(preprocessing.classes)}. Set `data` to the data set that it was trained on, or train a "
            "new network."
        )
    for number, (one, other) in enumerate(zip(own.classes, preprocessing.classes, strict=True)):
        if one != other:
            raise InputError(
                f"{source} was trained on other classes: number {number} is `{one}` there and `{other}` in "
                "the data set. Set `data` to the data set that it was trained on, or train a new network."
            )
    return replace(
        preprocessing,
        mean=preprocessing.mean if settings.mean else own.mean,
        std=preprocessing.std if settings.std else own.std,
    )
