"""Training for real, on real digits: killed, resumed, repeated, diverged, and by two processes."""

import copy
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import repnets
from pipeline.artifacts import documents
from pipeline.config.project import Training
from pipeline.config.stages import TrainSettings
from pipeline.data import splits
from pipeline.errors import InputError, StageError
from pipeline.models import checkpoints, distributed, training
from pipeline.stages import train

PROJECT = Path(__file__).resolve().parents[3]


def settings(**training) -> TrainSettings:
    training = {"epochs": 2, "batch_size": 32, **training}
    return TrainSettings(arch="toy", image_size=16, interpolation="bilinear", training=Training(**training))


def trained(folder: Path, split: Path, of: TrainSettings) -> bytes:
    """Run the stage; the bytes of the checkpoint."""
    train.run(of, split=split, checkpoint=folder / "checkpoint.safetensors", metrics=folder / "metrics.jsonl")
    return (folder / "checkpoint.safetensors").read_bytes()


def command(folder: Path, split: Path, of: TrainSettings, *starter: str) -> list[str]:
    words = ["--settings", of.model_dump_json(), "--split", str(split)]
    words += [
        "--checkpoint",
        str(folder / "checkpoint.safetensors"),
        "--metrics",
        str(folder / "metrics.jsonl"),
    ]
    return [sys.executable, "-m", *starter, "pipeline", "train", *words]


def fitted(split: Path, of: TrainSettings, **more) -> training.Trained:
    images = splits.open_split(split)
    torch.manual_seed(of.training.seed)
    model = repnets.create_model(of.arch, num_classes=10)
    return training.fit(model, images, images.preprocessing(of.image_size, of.interpolation), of.training, **more)


def test_the_same_seed_gives_the_same_bytes(few, tmp_path, monkeypatch, capsys):
    first = trained(tmp_path / "first", few, settings())
    assert "train: toy epoch 2/2  loss " in capsys.readouterr().out
    monkeypatch.setenv("REPNETS_STORE", str(tmp_path / "another store"))
    torch.manual_seed(77)
    assert trained(tmp_path / "second", few, settings()) == first
    assert "train: built" in capsys.readouterr().out
    assert trained(tmp_path / "third", few, settings(seed=1)) != first


def test_where_it_is_computed_does_not_make_it_another_result(few, tmp_path, capsys):
    first = trained(tmp_path / "first", few, settings(epochs=1))
    assert trained(tmp_path / "second", few, settings(epochs=1, workers=0, device="cpu")) == first
    assert "train: from the store" in capsys.readouterr().out


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_the_header_tells_the_accuracy_of_these_very_weights(few, tmp_path, ema_decay):
    trained(tmp_path, few, settings(ema_decay=ema_decay))
    model, header = checkpoints.load_model(tmp_path / "checkpoint.safetensors")
    images = splits.open_split(few)
    right = 0
    with torch.inference_mode():
        for batch, labels in images.batches("val", images.preprocessing(16, "bilinear"), 50):
            right += int((model(batch).argmax(1) == labels).sum())
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2]
    assert header.metrics == {
        "val_accuracy": records[-1]["val_accuracy"],
        "train_loss": records[-1]["loss"],
    }
    assert abs(header.metrics["val_accuracy"] - right / 100) <= 0.01  # a tie within rounding
    assert header.weights == ("raw" if ema_decay is None else "ema")
    assert (header.arch, header.num_classes, header.epoch, header.seed) == ("toy", 10, 2, 0)
    assert header.data_digest == images.digest
    assert header.processes is None and "processes" not in documents.plain(header)
    assert records[-1].keys() == {
        "epoch", "learning_rate", "loss", "val_accuracy", "images_per_second", "seconds"
    }  # fmt: skip


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(few, tmp_path, ema_decay):
    of = settings(epochs=3, ema_decay=ema_decay)
    whole = fitted(few, of)

    def stop(record: dict) -> None:
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(few, of, scratch=tmp_path, report=stop)
    seen = []
    resumed = fitted(few, of, scratch=tmp_path, report=lambda record: seen.append(record["epoch"]))
    assert seen == [3]
    assert all(torch.equal(tensor, resumed.state[name]) for name, tensor in whole.state.items())
    assert [record["loss"] for record in whole.records] == [record["loss"] for record in resumed.records]


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda state: state | {"processes": 2},
            r"begun by 2 processes, and one process would end with .* or delete .*\.pt ",
        ),
        (lambda state: {"records": []}, r"\.pt is damaged: .*processes.* Delete it; training then begins anew"),
    ],
)
def test_a_state_that_cannot_be_gone_on_from_is_refused(few, tmp_path, change, message):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    fitted(few, settings(epochs=1), scratch=scratch)
    (place,) = scratch.iterdir()
    torch.save(change(torch.load(place, weights_only=True)), place)
    with pytest.raises(InputError, match=message):
        fitted(few, settings(epochs=2), scratch=scratch)


@pytest.mark.slow
def test_a_run_killed_without_warning_ends_with_the_bytes_of_one_that_was_not(few, tmp_path):
    of = settings(epochs=40)

    def environment(name: str) -> dict[str, str]:
        return {**os.environ, "REPNETS_STORE": str(tmp_path / name), "OMP_NUM_THREADS": "1"}

    subprocess.run(command(tmp_path / "whole", few, of), cwd=PROJECT, env=environment("one"), check=True)
    run = command(tmp_path / "killed", few, of)
    process = subprocess.Popen(run, cwd=PROJECT, env=environment("two"), stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if " epoch 3/40 " in line:
            break
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert not (tmp_path / "killed").exists()
    done = subprocess.run(run, cwd=PROJECT, env=environment("two"), capture_output=True, text=True, check=True)
    went_on = re.search(r"going on after epoch (\d+)", done.stdout)
    assert went_on
    assert 3 <= int(went_on[1]) < 40
    assert f"epoch {int(went_on[1])}/40" not in done.stdout
    for name in ("checkpoint.safetensors",):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert len((tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()) == 40


def test_a_loss_that_diverges_stops_and_says_what_to_try(few, tmp_path):
    message = r"the loss became (nan|inf) in epoch 1 at step \d+.*learning_rate \(now 1e\+20; try 2.5e\+19\)"
    with pytest.raises(StageError, match=message):
        trained(tmp_path, few, settings(learning_rate=1e20, warmup_epochs=0))
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_a_missing_gpu_is_told(few, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(InputError, match=r"training.device: cuda, but torch sees no GPU here.*`device: auto`"):
        trained(tmp_path, few, settings(device="cuda"))


def test_the_command_line_ends_with_1_where_training_diverged(few, tmp_path):
    of = settings(learning_rate=1e20, warmup_epochs=0)
    environment = {**os.environ, "REPNETS_STORE": str(tmp_path / "store")}
    done = subprocess.run(
        command(tmp_path, few, of), cwd=PROJECT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: the loss became ")
    assert len(done.stderr.splitlines()) == 1


def test_the_learning_rate_warms_up_and_falls_to_zero():
    hyperparameters = Training(epochs=5, learning_rate=0.4, warmup_epochs=1)
    rates = [training._learning_rate(hyperparameters, step, 10) for step in range(50)]
    assert 0 < rates[0] < 0.1
    assert rates[:11] == sorted(rates[:11])
    assert rates[10] == max(rates) == 0.4
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001
    assert rates[30] == pytest.approx(0.2)
    assert training._learning_rate(Training(warmup_epochs=0, learning_rate=0.4), 0, 10) == 0.4


def test_biases_and_batch_norms_are_not_decayed():
    model = repnets.create_model("toy", num_classes=10)
    decayed, free = training._parameter_groups(model, 0.01)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.01, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(one)] for one in decayed["params"]} == {
        name for name in names.values() if name.endswith(("conv.weight", "linear.weight"))
    }
    assert len(decayed["params"]) + len(free["params"]) == len(names)


def test_an_average_follows_weights_and_batch_statistics():
    torch.manual_seed(0)
    average, model = repnets.create_model("toy", num_classes=3), repnets.create_model("toy", num_classes=3)
    model(torch.randn(8, 3, 8, 8))
    before = {name: tensor.clone() for name, tensor in average.state_dict().items()}
    training._blend(average, model, 0.75)
    new = model.state_dict()
    for name, tensor in average.state_dict().items():
        wanted = 0.75 * before[name] + 0.25 * new[name] if tensor.is_floating_point() else new[name]
        torch.testing.assert_close(tensor, wanted)
    assert not torch.equal(before["stage1.dense.bn.running_mean"], average.stage1.dense.bn.running_mean)


@pytest.mark.parametrize("name", ["toy", "repvgg_a0", "mobileone_s0"])
def test_each_operation_has_the_right_gradients_in_the_order_it_is_trained_in(name):
    """Each by itself against float64: in a whole network ReLUs that flip blow rounding up to per cents.

    A convolution that oneDNN computes wrongly is off by as much as its gradient is large. Batch norm in
    channels_last order is fifty times less exact than in the common one, and still within rounding.
    """
    from torch import nn

    found = {}

    def remember(module: nn.Module, inputs: tuple, _output: torch.Tensor) -> None:
        found.setdefault((str(module), inputs[0].shape), module)

    model = repnets.create_model(name, num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.register_forward_hook(remember)
    model(torch.randn(8, 3, 64, 64))
    assert len(found) >= 8
    for (what, shape), module in found.items():
        module._forward_hooks.clear()
        reference = nn.Sequential(copy.deepcopy(module).double())
        taught = distributed.for_device(nn.Sequential(module), torch.device("cpu"))
        torch.manual_seed(0)
        images = torch.randn(shape)
        exact = images.double().requires_grad_()
        wanted = reference(exact)
        slope = torch.randn(wanted.shape)
        wanted.backward(slope.double())
        images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
        taught(images).backward(slope.contiguous(memory_format=torch.channels_last))
        pairs = [(images.grad, exact.grad)]
        pairs += [(a.grad, b.grad) for a, b in zip(taught.parameters(), reference.parameters(), strict=True)]
        tolerance = 1e-5 if isinstance(module, nn.Conv2d) else 1e-4
        for got, right in pairs:
            assert (got - right).norm() <= tolerance * right.norm(), f"{what} on {tuple(shape)}"


def test_a_batch_too_small_to_share_out_is_refused(few, tmp_path):
    with pytest.raises(InputError, match="batch_size: 6 leaves less than two images to each of 4 processes"):
        train._train(settings(batch_size=6), few, tmp_path, distributed.ProcessGroup(rank=0, world_size=4), {})


@pytest.mark.slow
def test_two_processes_train_one_network_and_one_of_them_publishes(few, tmp_path):
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "REPNETS_STORE": str(tmp_path / "store")}

    def run(folder: str, *starter: str) -> str:
        words = command(tmp_path / folder, few, settings(epochs=6, ema_decay=0.9), *starter)
        done = subprocess.run(words, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    output = run("first", *torchrun)
    assert output.count("train: toy epoch 6/6") == 1
    assert output.count("train: built") == 1
    _, header = checkpoints.load_model(tmp_path / "first" / "checkpoint.safetensors")
    records = [json.loads(line) for line in (tmp_path / "first" / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["loss"] < records[0]["loss"] < math.log(10) * 1.5
    assert header.metrics["val_accuracy"] == records[-1]["val_accuracy"]
    # a hit for two processes, and for one
    assert run("second", *torchrun).count("train: from the store") == 1
    assert run("third").count("train: from the store") == 1
    environment["REPNETS_STORE"] = str(tmp_path / "another store")
    assert "train: built" in run("fourth", *torchrun)
    contents = {(tmp_path / name / "checkpoint.safetensors").read_bytes() for name in ("first", "second", "fourth")}
    assert len(contents) == 1


@pytest.mark.slow
def test_an_error_of_several_processes_ends_them_all(few, tmp_path):
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    words = command(tmp_path, few, settings(learning_rate=1e20, warmup_epochs=0), *torchrun)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "REPNETS_STORE": str(tmp_path / "store")}
    start = time.monotonic()
    done = subprocess.run(words, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0, time.monotonic() - start
    assert "error: the loss became " in done.stderr


@pytest.mark.slow
def test_the_defaults_learn_digits(artifacts):
    of = TrainSettings(arch="toy", image_size=32, interpolation="bilinear", training=Training())
    assert fitted(artifacts.split, of).records[-1]["val_accuracy"] >= 0.97


def test_photographs_are_learned_from_a_folder(tmp_path):
    """Two classes that differ in brightness, read and decoded by two worker processes."""
    import numpy as np
    from PIL import Image

    from pipeline.config.stages import SplitSettings
    from pipeline.stages import split

    random = np.random.default_rng(0)
    for name, base in (("dark", 0), ("light", 120)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(20):
            pixels = random.integers(base, base + 100, (30, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    of = SplitSettings(name="imagefolder", root=str(tmp_path / "images"), val_fraction=0.25, split_seed=0)
    split.run(of, output=tmp_path / "split.json")
    first = trained(tmp_path, tmp_path / "split.json", settings(epochs=3, batch_size=8, workers=2))
    header = checkpoints.read_header(tmp_path / "checkpoint.safetensors")
    assert header.num_classes == 2
    assert header.metrics["val_accuracy"] >= 0.9
    assert first
