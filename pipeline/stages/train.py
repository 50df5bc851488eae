"""Train a network, in its branched form, on the train part of the split.

    python -m pipeline train --model toy --split artifacts/split.json \\
        --checkpoint artifacts/toy/checkpoint.safetensors --metrics artifacts/toy/metrics.jsonl

SGD with Nesterov momentum, a warm-up and a cosine down to zero; label smoothing; no weight decay on
biases and batch norms. `training.ema_decay: 0.99` also keeps an average of the weights, and that is what
is validated and written. The last epoch is what counts: none is picked by its validation accuracy.

The same settings give the same bytes on the same machine with the same number of threads. A run that was
killed goes on after its last whole epoch and ends with the bytes of one that was not.

Several GPUs, or several processes on the CPU:

    torchrun --nproc-per-node 2 -m pipeline.stages.train --model toy --split ... --checkpoint ... --metrics ...

`training.batch_size` is that of all processes together, so the settings mean the same with any number.
"""

import copy
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import store
from pipeline.artifacts.manifest import Preprocessing
from pipeline.config.project import Training, TrainSettings
from pipeline.data import splits
from pipeline.errors import InputError, StageError
from pipeline.models import checkpoints, distributed, networks
from pipeline.models.distributed import Team

if TYPE_CHECKING:
    import torch
    from torch import nn

_VAL_BATCH_SIZE = 256
_STATE = "after-the-last-epoch.pt"


def run(settings: TrainSettings, *, split: Path, checkpoint: Path, metrics: Path) -> None:
    """Train one network.

    Args:
        settings: which network, at which size, and how it is trained.
        split: artifacts/split.json.
        checkpoint: where checkpoint.safetensors goes; its header holds all that is needed to use it.
        metrics: where metrics.jsonl goes: a line an epoch with learning rate, loss, accuracy and speed.

    Raises:
        InputError: the data set changed since it was split, the device is not there, or the network cannot be
            built or does not run at that size.
        StageError: the loss became NaN or infinite.
    """
    from_settings = settings.model_dump()
    for where_only in ("workers", "device"):  # how it is computed, and not what
        del from_settings["training"][where_only]
    team = distributed.own_team()
    with distributed.joined(team, settings.training.device):

        def build(outputs: dict[str, Path], scratch: Path) -> None:
            distributed.tell_all(team, str(scratch))
            _train(settings, split, scratch, team, outputs)

        if team.rank > 0:  # rank 0 looks into the store, and holds the lock there for all
            if scratch := distributed.tell_all(team, None):
                _train(settings, split, Path(scratch), team, {})
            return
        hit = store.cached(
            "train",
            settings=from_settings,
            inputs={"split": split},
            outputs={"checkpoint": checkpoint, "metrics": metrics},
            code=("pipeline.stages.train", *networks.code_modules(settings.arch)),
            packages=("torch", "torchvision", "pillow", "safetensors"),
            build=build,
        )
        if hit:
            distributed.tell_all(team, None)


@dataclass(frozen=True)
class Trained:
    """What training ends with.

    Attributes:
        state: the weights that were validated last, by name.
        weights: ``raw`` or ``ema``.
        records: a dict an epoch, as in metrics.jsonl.
    """

    state: dict[str, "torch.Tensor"]
    weights: str
    records: list[dict[str, Any]]


def fit(
    model: "nn.Module",
    split: splits.Split,
    preprocessing: Preprocessing,
    training: Training,
    *,
    scratch: Path | None = None,
    team: Team | None = None,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> Trained:
    """The training loop.

    Args:
        model: a network with fresh weights; it is trained in place.
        split: the data.
        preprocessing: how they become the network's input.
        training: the hyperparameters.
        scratch: folder where the state after each epoch is kept, and looked for; None to keep none.
        team: the processes that train together.
        report: called with the record of each epoch.

    Raises:
        StageError: the loss became NaN or infinite.
    """
    import torch
    from torch.nn.functional import cross_entropy
    from tqdm import tqdm

    team, report = team or Team(), report or (lambda record: None)
    device = distributed.device_of(training.device, team)
    model = distributed.for_device(model, device)
    trained = distributed.distributed(model, team, device)
    average = copy.deepcopy(model) if training.ema_decay else None
    best_known = average or model
    optimizer = torch.optim.SGD(
        _parameter_groups(model, training.weight_decay),
        lr=training.learning_rate,
        momentum=training.momentum,
        nesterov=training.momentum > 0,
        foreach=True,
    )
    steps = splits.training_steps(split, training.batch_size)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=distributed.has_bfloat16(device))
    records = _resume(scratch, model, optimizer, average)
    for epoch in range(len(records), training.epochs):
        start = time.perf_counter()
        torch.manual_seed(training.seed + epoch)
        trained.train()
        seen, total_loss = 0, torch.zeros((), device=device)
        batches = splits.training_batches(
            split,
            preprocessing,
            batch_size=training.batch_size,
            seed=training.seed,
            epoch=epoch,
            augment=training.augment,
            device=str(device),
            workers=training.workers,
            rank=team.rank,
            world=team.world,
        )
        name = f"epoch {epoch + 1}/{training.epochs}"
        bar = tqdm(batches, name, steps, leave=False, unit="batch", disable=True if team.rank else None)
        for step, (images, labels) in enumerate(bar):
            done = epoch * steps + step
            rate = _learning_rate(training, done, steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with autocast:
                loss = cross_entropy(trained(images), labels, label_smoothing=training.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if average is not None:
                _blend(average, model, min(training.ema_decay, (1 + done) / (10 + done)))
            total_loss += loss.detach()
            seen += len(images)
            if device.type == "cpu" or step % 20 == 19:  # looking at a GPU's loss waits for the GPU
                _refuse_diverged(total_loss, epoch, step, training)
        _refuse_diverged(total_loss, epoch, steps - 1, training)
        seen, loss_sum = distributed.summed(team, device, seen, float(total_loss))
        training_seconds = time.perf_counter() - start
        accuracy = _validate(best_known, split, preprocessing, device, autocast, team, training.workers)
        records.append(
            {
                "epoch": epoch + 1,
                "learning_rate": rate,
                "loss": loss_sum / steps / team.world,
                "val_accuracy": accuracy,
                "images_per_second": round(seen / training_seconds, 1),
                "seconds": round(time.perf_counter() - start, 3),
            }
        )
        if team.rank == 0:
            _keep(scratch, records, model, optimizer, average)
            report(records[-1])
    return Trained(best_known.state_dict(), "raw" if average is None else "ema", records)


def _train(settings: TrainSettings, split: Path, scratch: Path, team: Team, outputs: dict[str, Path]) -> None:
    import torch

    training, images = settings.training, splits.open_split(split)
    if training.batch_size < 2 * team.world:
        raise InputError(
            f"training.batch_size: {training.batch_size} leaves less than two images to each of "
            f"{team.world} processes, too few for a batch norm. Set it to {2 * team.world} or more."
        )
    preprocessing = images.preprocessing(settings.image_size, settings.interpolation, settings.mean, settings.std)
    torch.manual_seed(training.seed)
    model = networks.build(settings.arch, len(images.classes))
    networks.require_runs(model, settings.arch, len(images.classes), settings.image_size)

    def report(record: dict[str, Any]) -> None:
        print(
            f"train: {settings.arch} epoch {record['epoch']}/{training.epochs}  loss {record['loss']:.4f}  "
            f"accuracy {record['val_accuracy']:.2%}  {record['images_per_second']:.0f} images/s  "
            f"{record['seconds']:.1f} s",
            flush=True,
        )

    made = fit(model, images, preprocessing, training, scratch=scratch, team=team, report=report)
    if team.rank > 0:
        return
    last = made.records[-1]
    header = {
        "arch": settings.arch,
        "num_classes": len(images.classes),
        "preprocessing": asdict(preprocessing),
        "data_digest": images.digest,
        "epoch": last["epoch"],
        "weights": made.weights,
        "seed": training.seed,
        "metrics": {"val_accuracy": last["val_accuracy"], "train_loss": last["loss"]},
    }
    checkpoints.write(outputs["checkpoint"], made.state, header)
    outputs["metrics"].write_text("".join(json.dumps(record, allow_nan=False) + "\n" for record in made.records))


def _learning_rate(training: Training, done: int, steps: int) -> float:
    """Peak times a straight warm-up, then a cosine that ends at zero; ``done`` steps lie behind."""
    warmup, total = round(training.warmup_epochs * steps), training.epochs * steps
    if done < warmup:
        return training.learning_rate * (done + 1) / (warmup + 1)
    return training.learning_rate * (1 + math.cos(math.pi * (done - warmup) / max(1, total - warmup))) / 2


def _parameter_groups(model: "nn.Module", weight_decay: float) -> list[dict[str, Any]]:
    """Biases and batch norms, which are vectors, are not pulled towards zero."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [one for one in parameters if one.ndim > 1], "weight_decay": weight_decay},
        {"params": [one for one in parameters if one.ndim <= 1], "weight_decay": 0.0},
    ]


def _blend(average: "nn.Module", model: "nn.Module", decay: float) -> None:
    """Move an average of a network towards it, its batch statistics too."""
    import torch

    with torch.no_grad():
        for kept, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
            if kept.is_floating_point():
                kept.lerp_(new, 1 - decay)
            else:
                kept.copy_(new)


def _refuse_diverged(loss: "torch.Tensor", epoch: int, step: int, training: Training) -> None:
    if not math.isfinite(float(loss)):
        raise StageError(
            f"the loss became {float(loss)} in epoch {epoch + 1} at step {step + 1}, so training diverged. "
            f"Lower training.learning_rate (now {training.learning_rate:g}; try "
            f"{training.learning_rate / 4:g}), or set training.warmup_epochs higher (now "
            f"{training.warmup_epochs:g})."
        )


def _validate(
    model: "nn.Module",
    split: splits.Split,
    preprocessing: Preprocessing,
    device: "torch.device",
    autocast: "torch.autocast",
    team: Team,
    workers: int,
) -> float:
    """Accuracy on the validation part, which all processes share out among them."""
    import torch

    if team.world > 1:
        for buffer in model.buffers():  # each process has batch statistics of its own; rank 0's are written
            torch.distributed.broadcast(buffer, 0)
    share = split.share("val", team.rank, team.world)
    model.eval()
    right = torch.zeros((), device=device, dtype=torch.int64)
    with torch.inference_mode(), autocast:
        for images, labels in share.batches("val", preprocessing, _VAL_BATCH_SIZE, workers):
            images = images.to(device, memory_format=torch.channels_last)
            right += (model(images).argmax(1) == labels.to(device)).sum()
    (total,) = distributed.summed(team, device, int(right))
    return total / split.size("val")


def _keep(
    scratch: Path | None,
    records: list[dict[str, Any]],
    model: "nn.Module",
    optimizer: "torch.optim.Optimizer",
    average: "nn.Module | None",
) -> None:
    """Write down where training stands; a kill at any moment leaves this epoch's state or the last one's."""
    import torch

    if scratch is None:
        return
    fresh = scratch / f"{_STATE}.new"
    state = {
        "records": records,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": None if average is None else average.state_dict(),
    }
    with fresh.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, scratch / _STATE)


def _resume(
    scratch: Path | None, model: "nn.Module", optimizer: "torch.optim.Optimizer", average: "nn.Module | None"
) -> list[dict[str, Any]]:
    """Go back to where an interrupted run stood; the records of the epochs that are done."""
    import torch

    if scratch is None or not (scratch / _STATE).exists():
        return []
    state = torch.load(scratch / _STATE, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if average is not None:
        average.load_state_dict(state["average"])
    print(f"train: going on after epoch {len(state['records'])}, where an earlier run was stopped", flush=True)
    return state["records"]
