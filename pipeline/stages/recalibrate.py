"""Estimate the statistics of a checkpoint's batch norms anew, from training images.

    python -m pipeline recalibrate --model toy --checkpoint artifacts/toy/checkpoint.safetensors \\
        --split artifacts/split.json --output artifacts/toy/recalibrated.safetensors

Runs where `models.<name>.recalibrate_bn` says how many images to take; its checkpoint is then the one that
is fused, proved and shipped. The images are drawn from the train part by a fixed seed, prepared as for
inference, not augmented, and never taken from what is held out. Weights do not change. The accuracy on the
validation images is measured and printed, before and after.
"""

from dataclasses import replace
from pathlib import Path

from pipeline.artifacts import digests, store
from pipeline.artifacts.metric import TOP_1, shown
from pipeline.config.stages import RecalibrateSettings
from pipeline.data import splits
from pipeline.errors import InputError
from pipeline.models import checkpoints
from pipeline.models.accuracy import METRIC_PACKAGES, metric_of, scorer, share_right
from pipeline.models.training import score_name

_BATCH_SIZE = 256


def run(settings: RecalibrateSettings, *, checkpoint: Path, split: Path, output: Path) -> None:
    """Write a checkpoint with the same weights and fresh batch norm statistics.

    Args:
        settings: how many images to take; all, where the train part has no more.
        checkpoint: artifacts/<model>/checkpoint.safetensors.
        split: artifacts/split.json, for the images.
        output: where recalibrated.safetensors goes. Its header names the checkpoint that it was made from.

    Raises:
        InputError: no images are asked for, the checkpoint cannot be read, or its network came folded.
        RepnetsError: the statistics came out NaN or infinite.
    """
    if not settings.recalibrate_bn:
        raise InputError("recalibrate_bn is 0, so there is nothing to do. Set it under the model's name in `models:`.")
    if checkpoints.read_header(checkpoint).is_folded:
        raise InputError(
            f"{checkpoint} is of a network that was folded before it came here, and its batch norms with it, so there "
            "are no statistics to estimate. Take `recalibrate_bn` away, or adopt the checkpoint of its training."
        )
    store.cached(
        "recalibrate",
        settings=settings.model_dump(),
        inputs={"checkpoint": checkpoint, "split": split},
        outputs={"checkpoint": output},
        code=("pipeline.stages.recalibrate", *checkpoints.code_modules(checkpoint)),
        packages=("torch", "torchvision", "pillow", "safetensors", *METRIC_PACKAGES),
        build=lambda places, _: _recalibrate(settings.recalibrate_bn, checkpoint, split, places["checkpoint"]),
    )


def _recalibrate(wanted: int, checkpoint: Path, split: Path, output: Path) -> None:
    from repnets.batch_norms import recalibrated

    model, header = checkpoints.load_model(checkpoint)
    preprocessing = header.preprocessing
    images = splits.open_split(split)
    sample = images.sample("train", wanted)
    count = sample.size("train")
    batches = -(-count // _BATCH_SIZE)
    score = scorer(model, images, preprocessing)
    before = score(model)
    fresh = recalibrated(model, (batch for batch, _ in sample.batches("train", preprocessing, -(-count // batches))))
    after = score(fresh)
    metric = metric_of(images)
    if metric == TOP_1:
        told = f"right on {after:.2%} of {images.size('val')} validation images, before on {before:.2%}"
    elif images.has_labels:
        told = f"it {share_right(after, metric)}, before {shown(before, metric)}"
    else:
        told = f"of {images.size('val')} pictures, it {share_right(after, metric)}, as it was before"
    print(f"recalibrate: statistics of {count} training images; {told}", flush=True)
    made = replace(
        header,
        metrics={**header.metrics, score_name(metric): after} if images.has_labels else header.metrics,
        recalibrated={"images": count, "from": digests.digest(checkpoint)},
    )
    checkpoints.write(output, fresh.state_dict(), made)
