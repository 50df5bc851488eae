"""Train a network, in its branched form, on the train part of the split.

    python -m pipeline train --model toy --split artifacts/split.json \\
        --checkpoint artifacts/toy/checkpoint.safetensors --metrics artifacts/toy/metrics.jsonl

SGD with Nesterov momentum or AdamW, a warm-up and a cosine down to zero; label smoothing; no weight decay on
biases and batch norms. `training.ema_decay: 0.99` also keeps an average of the weights, and that is what
is validated and written. The last epoch is what counts: none is picked by its validation accuracy.

The same settings give the same bytes on the same machine with the same number of threads. A run that was
killed goes on after its last whole epoch and ends with the bytes of one that was not.

Several GPUs, or several processes on the CPU:

    torchrun --nproc-per-node 2 -m pipeline train --model toy --split ... --checkpoint ... --metrics ...

`training.batch_size` is that of all processes together, so the settings mean the same with any number. On several
machines, only that of rank 0 needs the store, and keeps the state of a run that was killed; each needs the split.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.artifacts import digests, store
from pipeline.artifacts.checkpoint_header import CheckpointHeader
from pipeline.artifacts.digests import Inputs
from pipeline.artifacts.manifest import versions
from pipeline.artifacts.metric import shown
from pipeline.config.stages import TrainSettings
from pipeline.data import splits
from pipeline.errors import InputError
from pipeline.models import checkpoints, distributed, networks
from pipeline.models import training as training_loop
from pipeline.models.accuracy import METRIC_PACKAGES, metric_of, require_fits
from pipeline.models.distributed import ProcessGroup


def run(settings: TrainSettings, *, split: Path, checkpoint: Path, metrics: Path) -> None:
    """Train one network.

    Args:
        settings: which network, at which size, and how it is trained.
        split: artifacts/split.json.
        checkpoint: where checkpoint.safetensors goes; its header holds all that is needed to use it.
        metrics: where metrics.jsonl goes: a line an epoch with learning rate, loss, accuracy and speed.

    Raises:
        InputError: the data set changed since it was split, the device is not there, or the network cannot be
            built or does not run at that size; the processes do not train the same.
        StageError: the loss became NaN or infinite; the weights of the processes differ.
    """
    from_settings = settings.model_dump()
    for where_only in ("workers", "device"):  # how it is computed, and not what
        del from_settings["training"][where_only]
    code = ("pipeline.stages.train", *networks.code_modules(settings.arch))
    packages = ("torch", "torchvision", "pillow", "safetensors", *METRIC_PACKAGES)
    inputs = Inputs({"split": split})
    group = distributed.process_group()
    with distributed.connected(group, settings.training.device):
        if group.world_size > 1:
            distributed.require_same(group, _trained(from_settings, inputs, code, packages))

        def build(outputs: dict[str, Path], scratch: Path) -> None:
            distributed.broadcast(group, True)
            _train(settings, split, scratch, group, outputs)

        if group.rank > 0:  # rank 0 looks into the store, and holds the lock there for all
            if distributed.broadcast(group, False):
                _train(settings, split, None, group, {})
            return
        hit = store.cached(
            "train",
            settings=from_settings,
            inputs=inputs,
            outputs={"checkpoint": checkpoint, "metrics": metrics},
            code=code,
            packages=packages,
            build=build,
        )
        if hit:
            distributed.broadcast(group, False)


def _trained(
    settings: Mapping[str, Any], inputs: Inputs, code: Sequence[str], packages: Sequence[str]
) -> dict[str, str]:
    """What is trained, by the names of its parts: what the store's key is made of."""
    return {
        "set of settings": json.dumps(settings, sort_keys=True),
        "split": inputs.sha256["split"],
        "version of the code": digests.code_digest(*code),
        "version of Python": ".".join(map(str, sys.version_info[:2])),
        "version of a package": json.dumps(versions(*packages), sort_keys=True),
    }


def _train(
    settings: TrainSettings, split: Path, scratch: Path | None, group: ProcessGroup, outputs: dict[str, Path]
) -> None:
    import torch

    training, images = settings.training, splits.open_split(split)
    if training.batch_size < 2 * group.world_size:
        raise InputError(
            f"training.batch_size: {training.batch_size} leaves less than two images to each of "
            f"{group.world_size} processes, too few for a batch norm. Set it to {2 * group.world_size} or more."
        )
    preprocessing, metric = images.preprocessing(**settings.of_images), metric_of(images)
    torch.manual_seed(training.seed)
    model = networks.build(settings.arch, len(images.classes), channels=preprocessing.channels)
    networks.require_runs(model, settings.arch, preprocessing)
    require_fits(model, settings.arch, images, preprocessing)
    score_name = training_loop.score_name(metric)

    def report(record: dict[str, Any]) -> None:
        score = f"{score_name.removeprefix('val_')} {shown(record[score_name], metric)}"
        print(
            f"train: {settings.arch} epoch {record['epoch']}/{training.epochs}  loss {record['loss']:.4f}  "
            f"{score}  {record['images_per_second']:.0f} images/s  "
            f"{record['seconds']:.1f} s",
            flush=True,
        )

    made = training_loop.fit(model, images, preprocessing, training, scratch=scratch, group=group, report=report)
    if group.rank > 0:
        return
    last = made.records[-1]
    header = CheckpointHeader(
        arch=settings.arch,
        num_classes=len(images.classes),
        preprocessing=preprocessing,
        data_digest=images.digest,
        epoch=last["epoch"],
        weights=made.weights,
        seed=training.seed,
        processes=group.world_size if group.world_size > 1 else None,
        metrics={score_name: last[score_name], "train_loss": last["loss"]},
    )
    checkpoints.write(outputs["checkpoint"], made.state, header)
    outputs["metrics"].write_text("".join(json.dumps(record, allow_nan=False) + "\n" for record in made.records))
