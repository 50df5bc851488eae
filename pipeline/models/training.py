"""The training loop: SGD with Nesterov momentum or AdamW, a warm-up, a cosine down to zero, the loss of the task.

Biases and batch norms have no weight decay. A moving average of the weights is kept if that is configured. A run that
was killed resumes after its last complete epoch, and ends with the same bytes as an uninterrupted run.

Of several processes, rank 0 alone reads and writes the state after each epoch, and sends it to the others: they may run
on machines that share no folder. After each epoch all compare their weights, before anything is kept of it.
"""

import copy
import hashlib
import io
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts.atomic import replacing
from pipeline.artifacts.manifest import Preprocessing
from pipeline.artifacts.metric import TOP_1, plain
from pipeline.config.project import Training
from pipeline.data import splits, training_batches
from pipeline.errors import InputError, StageError, reading
from pipeline.models import accuracy, distributed
from pipeline.models.distributed import ProcessGroup

if TYPE_CHECKING:
    import torch
    from torch import nn


_VAL_BATCH_SIZE = 256


_STATE = "after-the-last-epoch.pt"


@dataclass(frozen=True)
class Trained:
    """The result of training.

    Attributes:
        state: the weights after the last epoch, by name.
        weights: ``raw`` or ``ema``.
        records: a dict for each epoch, as in metrics.jsonl.
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
    group: ProcessGroup | None = None,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> Trained:
    """The training loop.

    Args:
        model: a network with fresh weights; it is trained in place.
        split: the data, with labels; the loss and the score are those of its task.
        preprocessing: how images become the network's input.
        training: the hyperparameters.
        scratch: folder for the state after each epoch, from which a run resumes; None: no state is kept. That of rank
            0 counts.
        group: the processes that train together.
        report: called with the record of each epoch, on rank 0.

    Raises:
        InputError: the state is damaged, or of another number of processes.
        StageError: the loss became NaN or infinite; the processes have different weights.
    """
    import torch
    from tqdm import tqdm

    from repnets.outputs import named

    group, report = group or ProcessGroup(), report or (lambda record: None)
    device = distributed.device_of(training.device, group)
    model = distributed.for_device(model, device)
    trained = distributed.distributed(model, group, device)
    average = copy.deepcopy(model) if training.ema_decay else None
    best_known = average or model
    optimizer = _optimizer(model, training)
    steps = training_batches.steps(split, training.batch_size)
    task, metric = accuracy.task_of(split, preprocessing, training.label_smoothing), accuracy.metric_of(split)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=distributed.has_bfloat16(device))
    records = _resume(scratch, group, model, optimizer, average)
    _require_in_step(group, len(records), model, optimizer, best_known)
    for epoch in range(len(records), training.epochs):
        start = time.perf_counter()
        torch.manual_seed(training.seed + epoch)
        trained.train()
        seen, total_loss = 0, torch.zeros((), device=device)
        batches = training_batches.batches(
            split,
            preprocessing,
            batch_size=training.batch_size,
            seed=training.seed,
            epoch=epoch,
            augment=training.augment,
            device=str(device),
            workers=training.workers,
            rank=group.rank,
            world=group.world_size,
        )
        name = f"epoch {epoch + 1}/{training.epochs}"
        bar = tqdm(batches, name, steps, leave=False, unit="batch", disable=True if group.rank else None)
        for step, (images, targets) in enumerate(bar):
            done = epoch * steps + step
            rate = _learning_rate(training, done, steps)
            for parameters in optimizer.param_groups:
                parameters["lr"] = rate
            with autocast:
                loss = task.loss(list(named(trained(images)).values()), targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if average is not None:
                _blend(average, model, min(training.ema_decay, (1 + done) / (10 + done)))
            total_loss += loss.detach()
            seen += len(images)
            if device.type == "cpu" or step % 20 == 19:  # reading a GPU's loss waits for the GPU
                _refuse_diverged(total_loss, epoch, step, training)
        _refuse_diverged(total_loss, epoch, steps - 1, training)
        seen, loss_sum = distributed.summed_over_processes(group, device, seen, float(total_loss))
        training_seconds = time.perf_counter() - start
        score = _validate(best_known, split, preprocessing, device, autocast, group, training.workers)
        records.append(
            {
                "epoch": epoch + 1,
                "learning_rate": rate,
                "loss": loss_sum / steps / group.world_size,
                score_name(metric): score,
                "images_per_second": round(seen / training_seconds, 1),
                "seconds": round(time.perf_counter() - start, 3),
            }
        )
        _require_in_step(group, len(records), model, optimizer, best_known)
        if group.rank == 0:
            _keep(scratch, records, group, model, optimizer, average)
            report(records[-1])
    return Trained(best_known.state_dict(), "raw" if average is None else "ema", records)


def score_name(metric: str) -> str:
    """What the score on the validation images is called in a record."""
    return "val_accuracy" if metric == TOP_1 else f"val_{plain(metric)}"


def _learning_rate(training: Training, done: int, steps: int) -> float:
    """A linear warm-up to the peak, then a cosine down to zero; after ``done`` steps."""
    warmup, total = round(training.warmup_epochs * steps), training.epochs * steps
    if done < warmup:
        return training.learning_rate * (done + 1) / (warmup + 1)
    return training.learning_rate * (1 + math.cos(math.pi * (done - warmup) / max(1, total - warmup))) / 2


def _optimizer(model: "nn.Module", training: Training) -> "torch.optim.Optimizer":
    import torch

    groups, rate, momentum = _parameter_groups(model, training.weight_decay), training.learning_rate, training.momentum
    if training.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=(momentum, 0.999), foreach=True)
    return torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=momentum > 0, foreach=True)


def _parameter_groups(model: "nn.Module", weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: biases and batch norms, which are vectors, have no weight decay."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [one for one in parameters if one.ndim > 1], "weight_decay": weight_decay},
        {"params": [one for one in parameters if one.ndim <= 1], "weight_decay": 0.0},
    ]


def _blend(average: "nn.Module", model: "nn.Module", decay: float) -> None:
    """Update the moving average of a network, its batch statistics included."""
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
    group: ProcessGroup,
    workers: int,
) -> float:
    """The score on the validation part, of classifiers divided among the processes."""
    import torch

    from repnets.outputs import named

    if group.world_size > 1:
        for buffer in model.buffers():  # batch statistics differ between processes; rank 0's are saved
            torch.distributed.broadcast(buffer, 0)
    model.eval()

    def on_device(images: "torch.Tensor") -> list["torch.Tensor"]:
        given = named(model(images.to(device, memory_format=torch.channels_last)))
        return [one.float().cpu() for one in given.values()]

    whole = not split.is_of_classifier  # the score of parts does not give that of all
    share = split if whole else split.share("val", group.rank, group.world_size)
    with autocast:
        given, targets = accuracy.outputs(on_device, share, preprocessing, _VAL_BATCH_SIZE, workers)
    score = accuracy.score_of(share, preprocessing, given, [], targets)
    if whole:
        return score
    (right,) = distributed.summed_over_processes(group, device, round(score * share.size("val")))
    return right / split.size("val")


def _require_in_step(
    group: ProcessGroup, epochs: int, model: "nn.Module", optimizer: "torch.optim.Optimizer", best_known: "nn.Module"
) -> None:
    """StageError on every rank where one is after another epoch, or has other weights, than rank 0."""
    if group.world_size == 1:
        return
    (first, digest), *others = distributed.gathered(group, (epochs, _digest(model, optimizer, best_known)))
    for rank, (epoch, other) in enumerate(others, start=1):
        if (epoch, other) != (first, digest):
            what = "has other weights than rank 0" if epoch == first else f"is after epoch {epoch}"
            raise StageError(
                f"the processes are out of step after epoch {first}: rank {rank} {what}. Nothing was published, and "
                "nothing of this epoch was kept. Gradients alone are shared, so let all machines have the same kind of "
                "processor or GPU, and let no forward change parameters; then run again."
            )


def _digest(model: "nn.Module", optimizer: "torch.optim.Optimizer", best_known: "nn.Module") -> str:
    """Sha256 of what all processes have in common after an epoch; of batch statistics, those of the best known."""
    import torch

    momenta = (one for state in optimizer.state_dict()["state"].values() for one in state.values())
    content = hashlib.sha256()
    for tensor in (*model.parameters(), *momenta, *best_known.state_dict().values()):
        if isinstance(tensor, torch.Tensor):
            content.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return content.hexdigest()


def _keep(
    scratch: Path | None,
    records: list[dict[str, Any]],
    group: ProcessGroup,
    model: "nn.Module",
    optimizer: "torch.optim.Optimizer",
    average: "nn.Module | None",
) -> None:
    """Save the state of training; a kill at any moment leaves this epoch's state or the one before."""
    import torch

    if scratch is None:
        return
    state = {
        "records": records,
        "processes": group.world_size,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": None if average is None else average.state_dict(),
    }
    with replacing(scratch / _STATE) as fresh, fresh.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def _resume(
    scratch: Path | None,
    group: ProcessGroup,
    model: "nn.Module",
    optimizer: "torch.optim.Optimizer",
    average: "nn.Module | None",
) -> list[dict[str, Any]]:
    """Restore the state of an interrupted run, which rank 0 reads for all; returns the records of its epochs."""
    import torch

    is_there = group.rank == 0 and scratch is not None and (scratch / _STATE).exists()
    found = distributed.broadcast(group, (str(scratch / _STATE), (scratch / _STATE).read_bytes()) if is_there else None)
    if found is None:
        return []
    name, content = found
    with reading(name, "Delete it; training then begins anew."):
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        records, processes = state["records"], state["processes"]
    if processes != group.world_size:
        raise InputError(
            f"this training was begun by {_processes(processes)}, and {_processes(group.world_size)} would end with "
            f"other weights: each has batch norms of its own. Go on with {processes}, or delete {name} to begin anew."
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if average is not None:
        average.load_state_dict(state["average"])
    if group.rank == 0:
        print(f"train: going on after epoch {len(records)}, where an earlier run was stopped", flush=True)
    return records


def _processes(count: int) -> str:
    return "one process" if count == 1 else f"{count} processes"
