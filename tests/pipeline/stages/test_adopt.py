"""The stage adopt on files such as users bring."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import repnets
from pipeline.artifacts.checkpoint_header import CheckpointHeader
from pipeline.config.stages import AdoptSettings
from pipeline.data import splits
from pipeline.errors import InputError
from pipeline.models import checkpoints, programs
from pipeline.models.accuracy import better_order
from pipeline.stages import adopt
from repnets.checkpoints.layouts import convert

PROJECT = Path(__file__).resolve().parents[3]
SETTINGS = AdoptSettings(arch="toy", image_size=32, interpolation="bilinear")


@pytest.fixture
def brought(artifacts) -> tuple[dict[str, torch.Tensor], CheckpointHeader]:
    """Weights and header of a checkpoint of this pipeline."""
    return checkpoints.read(artifacts.checkpoint)


def adopted(artifacts, source: Path, settings: AdoptSettings = SETTINGS) -> tuple[dict, CheckpointHeader]:
    """Run the stage; what it wrote."""
    target = source.parent / "adopted" / "checkpoint.safetensors"
    adopt.run(settings, source=source, split=artifacts.split, checkpoint=target)
    return checkpoints.read(target)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_a_bare_state_dict_is_adopted(artifacts, brought, tmp_path, suffix):
    state, _ = brought
    source = tmp_path / f"mine{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, source)
    got, header = adopted(artifacts, source)
    assert all(torch.equal(got[name], tensor) for name, tensor in state.items())
    images = splits.open_split(artifacts.split)
    assert (header.arch, header.num_classes, header.weights) == ("toy", 10, "raw")
    assert header.data_digest == images.digest
    assert header.preprocessing.classes == tuple(images.classes)
    assert header.preprocessing.image_size == 32


@pytest.mark.parametrize("prefix", ["", "model.", "_orig_mod.module.", "features."])
@pytest.mark.parametrize("own", ["", "model.", "features.model."])
def test_a_prefix_that_is_not_the_networks_own_is_taken_off(artifacts, own_modules, tmp_path, own, prefix):
    wrapped = "net"
    for name in reversed(own.split(".")[:-1]):
        wrapped = f"nn.Sequential(OrderedDict({name}={wrapped}))"
    own_modules({"mine": "from collections import OrderedDict\nfrom torch import nn\n\ndef build(num_classes):\n"
                         "    net = nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes))\n"
                         f"    return {wrapped}\n"})  # fmt: skip
    state = {"1.weight": torch.randn(10, 192), "1.bias": torch.randn(10)}
    source = tmp_path / "last.ckpt"
    torch.save({"epoch": 1, "state_dict": {f"{prefix}{own}{name}": state[name] for name in state}}, source)
    settings = AdoptSettings(arch="mine:build", image_size=8, interpolation="bilinear")
    got, _ = adopted(artifacts, source, settings)
    assert got.keys() == {f"{own}{name}" for name in state}
    assert all(torch.equal(got[f"{own}{name}"], state[name]) for name in state)


def test_the_accuracy_is_measured_on_the_validation_images(artifacts, brought, tmp_path, capsys):
    state, _ = brought
    torch.save(state, tmp_path / "mine.pth")
    _, header = adopted(artifacts, tmp_path / "mine.pth")
    model, _ = checkpoints.load_model(tmp_path / "adopted/checkpoint.safetensors")
    images = splits.open_split(artifacts.split)
    right = 0
    with torch.inference_mode():
        for batch, labels in images.batches("val", images.preprocessing(32, "bilinear"), 50):
            right += int((model(batch).argmax(1) == labels).sum())
    assert header.metrics["val_accuracy"] == pytest.approx(right / images.size("val"), abs=1 / images.size("val"))
    said = capsys.readouterr()
    assert f"is right on {header.metrics['val_accuracy']:.2%} of 359 validation images" in said.out
    # the network was never trained
    assert "no better than guessing among 10 classes" in said.err


def test_an_average_is_called_one(artifacts, brought, tmp_path):
    state, _ = brought
    wrong = {name: tensor + 1 for name, tensor in state.items()}
    torch.save({"state_dict": wrong, "state_dict_ema": state}, tmp_path / "mine.pth")
    got, header = adopted(artifacts, tmp_path / "mine.pth")
    assert header.weights == "ema"
    assert torch.equal(got["head.linear.weight"], state["head.linear.weight"])


def test_a_file_of_our_own_keeps_what_its_header_says(artifacts, brought, tmp_path):
    state, header = brought
    preprocessing = replace(header.preprocessing, mean=(0.1, 0.2, 0.3))
    checkpoints.write(tmp_path / "ours.safetensors", state, replace(header, weights="ema", preprocessing=preprocessing))
    _, got = adopted(artifacts, tmp_path / "ours.safetensors")
    assert got.weights == "ema"
    assert got.preprocessing.mean == (0.1, 0.2, 0.3)


def test_mean_and_std_that_are_set_hold_against_the_data_sets_and_the_headers(artifacts, brought, tmp_path):
    state, header = brought
    torch.save(state, tmp_path / "mine.pth")
    checkpoints.write(tmp_path / "ours.safetensors", state, header)
    settings = SETTINGS.model_copy(update={"mean": (0.5, 0.4, 0.3)})
    for name in ("mine.pth", "ours.safetensors"):
        _, got = adopted(artifacts, tmp_path / name, settings)
        assert got.preprocessing.mean == (0.5, 0.4, 0.3)
        assert got.preprocessing.std == header.preprocessing.std


def test_a_size_that_the_network_does_not_run_at_is_told(artifacts, tmp_path):
    from pipeline.models import networks

    arch = "torchvision.models:squeezenet1_1"
    torch.save(networks.build(arch, 10).state_dict(), tmp_path / "mine.pth")
    with pytest.raises(InputError, match=r"squeezenet1_1` does not run on images of 8 x 8 pixels"):
        adopted(artifacts, tmp_path / "mine.pth", SETTINGS.model_copy(update={"arch": arch, "image_size": 8}))
    assert not (tmp_path / "adopted").exists()


def test_a_file_of_our_own_for_another_network_is_refused(artifacts, brought, tmp_path):
    state, header = brought
    checkpoints.write(tmp_path / "ours.safetensors", state, header)
    with pytest.raises(InputError, match=r"holds a `toy`, but the model's `arch` is `repvgg_a0`. Set `arch: toy`"):
        adopted(artifacts, tmp_path / "ours.safetensors", SETTINGS.model_copy(update={"arch": "repvgg_a0"}))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (
            [*"012345678", "nine"],
            "trained on other classes: number 9 is `nine` there and `9` in the data set",
        ),
        ([*"012"], "tells 3 classes apart, but the data set has 10"),
    ],
)
def test_a_file_of_our_own_with_other_classes_is_refused(artifacts, brought, tmp_path, classes, message):
    state, header = brought
    header = replace(header, preprocessing=replace(header.preprocessing, classes=tuple(classes)))
    checkpoints.write(tmp_path / "ours.safetensors", state, header)
    with pytest.raises(InputError, match=message):
        adopted(artifacts, tmp_path / "ours.safetensors")


def test_a_file_that_does_not_fit_leaves_nothing(artifacts, brought, tmp_path):
    state, _ = brought
    torch.save({name: tensor for name, tensor in state.items() if "head" not in name}, tmp_path / "mine.pth")
    with pytest.raises(InputError, match=r"mine.pth: .*`head.linear.weight`, `head.linear.bias` are missing"):
        adopted(artifacts, tmp_path / "mine.pth")
    assert not (tmp_path / "adopted").exists()


def test_a_wrong_number_of_classes_gives_both_numbers(artifacts, brought, tmp_path):
    state, _ = brought
    wide = {"head.linear.weight": torch.zeros(1000, 128), "head.linear.bias": torch.zeros(1000)}
    torch.save({**state, **wide}, tmp_path / "mine.pth")
    with pytest.raises(InputError, match=r"tells 1000 classes apart .*but the data set has 10"):
        adopted(artifacts, tmp_path / "mine.pth")


def test_a_missing_file_is_named(artifacts, tmp_path):
    with pytest.raises(InputError, match=r"mine.pth does not exist. Check `checkpoint:` of the model `toy`"):
        adopted(artifacts, tmp_path / "mine.pth")


def test_the_command_line_refuses_code(artifacts, tmp_path):
    (tmp_path / "mine.pt").write_bytes(b"cposix\nsystem\n(S'touch " + str(tmp_path / "witness").encode() + b"'\ntR.")
    words = ["--settings", SETTINGS.model_dump_json(), "--source", str(tmp_path / "mine.pt")]
    words += ["--split", str(artifacts.split), "--checkpoint", str(tmp_path / "checkpoint.safetensors")]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "adopt", *words],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "witness").exists()


def test_another_split_is_another_result(artifacts, brought, tmp_path, capsys):
    state, _ = brought
    torch.save(state, tmp_path / "mine.pth")
    adopted(artifacts, tmp_path / "mine.pth")
    adopted(artifacts, tmp_path / "mine.pth")
    assert "adopt: from the store" in capsys.readouterr().out
    images = splits.open_split(artifacts.split)
    other = splits.new_split(
        images.name,
        images.root,
        images.classes,
        images.sources,
        images.labels,
        {**images.parts, "val": images.parts["val"][:100]},
    )
    assert replace(other, digest=images.digest) != images
    splits.write_split(tmp_path / "other.json", other)
    adopt.run(
        SETTINGS,
        source=tmp_path / "mine.pth",
        split=tmp_path / "other.json",
        checkpoint=tmp_path / "o.safetensors",
    )
    assert checkpoints.read_header(tmp_path / "o.safetensors").data_digest == other.digest


# Layouts of others, and networks that came folded


@pytest.mark.parametrize("naming", ["official", "timm"])
def test_a_checkpoint_in_the_layout_of_others_is_adopted(artifacts, randomise, tmp_path, naming):
    model = randomise(repnets.create_model("mobileone_s1", num_classes=10))
    theirs = {f"module.{name}": tensor for name, tensor in convert(model.state_dict(), "mobileone_s1", naming).items()}
    torch.save({"state_dict": theirs}, tmp_path / "mine.pth")
    got, header = adopted(artifacts, tmp_path / "mine.pth", SETTINGS.model_copy(update={"arch": "mobileone_s1"}))
    assert header.form == "training"
    assert got.keys() == model.state_dict().keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in model.state_dict().items())


@pytest.fixture(scope="module")
def folded(artifacts) -> dict[str, torch.Tensor]:
    """Weights of the toy network in our deploy layout."""
    return convert(torch.export.load(artifacts.fused).state_dict, "toy")


def test_a_network_that_came_folded_says_so_and_is_loaded_fused(artifacts, folded, tmp_path):
    torch.save({"model": folded}, tmp_path / "mine.pth")
    got, header = adopted(artifacts, tmp_path / "mine.pth")
    assert header.form == "deploy"
    assert len(got) == len(folded) == 8
    model, _ = checkpoints.load_model(tmp_path / "adopted/checkpoint.safetensors")
    images = torch.randn(3, 3, 40, 32)
    with torch.inference_mode():
        want = programs.as_module(torch.export.load(artifacts.fused))(images)
        assert torch.equal(model(images), want)


def test_a_network_that_came_folded_is_adopted_again(artifacts, folded, tmp_path):
    torch.save(folded, tmp_path / "mine.pth")
    first, header = adopted(artifacts, tmp_path / "mine.pth")
    checkpoints.write(tmp_path / "again.safetensors", first, header)
    again, header = adopted(artifacts, tmp_path / "again.safetensors")
    assert header.form == "deploy"
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())


@pytest.mark.slow
@pytest.mark.parametrize("naming", ["official", "timm"])
def test_deploy_weights_of_others_are_loaded_by_block(artifacts, randomise, tmp_path, naming):
    """MobileOne-S4 has all that names differ by: one branch, many, and gates beside them."""
    model = randomise(repnets.create_model("mobileone_s4", num_classes=10)).eval()
    fused = repnets.fuse(model, torch.zeros(1, 3, 64, 64)).module
    torch.save(convert(fused.state_dict(), "mobileone_s4", naming), tmp_path / "mine.pth")
    got, header = adopted(artifacts, tmp_path / "mine.pth", SETTINGS.model_copy(update={"arch": "mobileone_s4"}))
    assert header.form == "deploy"
    assert got.keys() == fused.state_dict().keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in fused.state_dict().items())


def test_a_wrong_number_of_classes_of_a_folded_network_gives_both_numbers(artifacts, folded, tmp_path):
    wide = {"head.linear.weight": torch.zeros(1000, 128), "head.linear.bias": torch.zeros(1000)}
    torch.save({**folded, **wide}, tmp_path / "mine.pth")
    with pytest.raises(InputError, match=r"tells 1000 classes apart .*but the data set has 10"):
        adopted(artifacts, tmp_path / "mine.pth")


def test_deploy_weights_among_those_of_training_are_refused(artifacts, brought, folded, tmp_path):
    state, _ = brought
    torch.save({**state, **folded}, tmp_path / "mine.pth")
    with pytest.raises(InputError, match=r"of 2 layouts at once: `stage1.dense.bn.bias` is of repnets training; "):
        adopted(artifacts, tmp_path / "mine.pth")


def test_a_sick_weight_of_a_folded_network_is_named(artifacts, folded, tmp_path):
    sick = folded["stage2.bias"].clone()
    sick[3] = float("nan")
    torch.save({**folded, "stage2.bias": sick}, tmp_path / "mine.pth")
    with pytest.raises(InputError, match=r"`stage2.bias` holds 1 values that are NaN or infinite"):
        adopted(artifacts, tmp_path / "mine.pth")


def linear_net(images: splits.Split, own_modules, order: list[int]) -> dict[str, torch.Tensor]:
    """Weights of a linear network of the digits, fitted by least squares, with its classes in an order of its own."""
    own_modules({"mine": "from torch import nn\n\ndef build(num_classes):\n"
                         "    return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes))\n"})  # fmt: skip
    pixels, labels = (torch.cat(parts) for parts in zip(*images.batches("train", images.preprocessing(8, "bilinear"),
                                                                        500), strict=True))  # fmt: skip
    inputs = torch.cat([pixels.flatten(1), torch.ones(len(pixels), 1)], 1)
    fit = torch.linalg.lstsq(inputs, torch.nn.functional.one_hot(labels, 10).float(), driver="gelsd").solution.T
    return {"1.weight": fit[order, :-1].contiguous(), "1.bias": fit[order, -1].contiguous()}


@pytest.mark.parametrize("order", [[1, 2, 0, 3, 4, 5, 6, 9, 8, 7], list(range(10))])
def test_a_network_that_fits_another_order_of_the_classes_is_told_so(artifacts, own_modules, tmp_path, capsys, order):
    state = linear_net(splits.open_split(artifacts.split), own_modules, order)
    torch.save(state, tmp_path / "mine.pth")
    settings = AdoptSettings(arch="mine:build", image_size=8, interpolation="bilinear")
    _, header = adopted(artifacts, tmp_path / "mine.pth", settings)
    said = capsys.readouterr().err
    if order == sorted(order):
        assert header.metrics["val_accuracy"] > 0.85
        assert said == ""
        return
    assert header.metrics["val_accuracy"] < 0.7
    assert "the network fits another order of the classes much better: 9" in said
    assert "Its class 0 is `1`, say, and not `0`" in said
    assert 'classes: ["1", "2", "0", "3", "4", "5", "6", "9", "8", "7"]' in said


@pytest.mark.parametrize("classes, images", [(2, 20), (10, 100), (1000, 2000)])
def test_chance_finds_no_other_order(classes, images):
    generator = torch.Generator().manual_seed(0)
    guessed, labels = torch.randint(classes, (2, images), generator=generator)
    assert better_order(guessed, labels, classes) is None
    assert better_order(torch.zeros_like(labels), labels, classes) is None
