"""The stage that fuses: what it writes, and that the program knows where it came from."""

import json

import pytest
import torch

import repnets
from pipeline.artifacts import digests
from pipeline.artifacts.fuse_result import Forecast, Risk
from pipeline.config.stages import NoSettings
from pipeline.data import splits
from pipeline.models import checkpoints
from pipeline.stages import reparameterize


def test_the_program_computes_what_the_branched_network_computes(artifacts):
    model, _ = checkpoints.load_model(artifacts.checkpoint)
    fused = torch.export.load(artifacts.fused).module()
    for shape in ((1, 3, 32, 32), (5, 3, 47, 32), (1, 3, 1, 1)):
        images = torch.randn(shape)
        with torch.inference_mode():
            torch.testing.assert_close(fused(images), model(images), rtol=1e-4, atol=1e-4)


def test_nothing_but_three_convolutions_is_left(artifacts):
    report = json.loads(artifacts.report.read_text())
    assert (report["before"]["convolutions"], report["after"]["convolutions"]) == (6, 3)
    assert (report["before"]["batch_norms"], report["after"]["batch_norms"]) == (7, 0)
    targets = [str(node.target) for node in torch.export.load(artifacts.fused).graph.nodes]
    assert sum(target.startswith("aten.conv") for target in targets) == 3
    assert not any("batch_norm" in target or target.startswith("aten.add") for target in targets)


def test_the_program_carries_its_lineage(artifacts):
    extra = {"lineage.json": ""}
    torch.export.load(artifacts.fused, extra_files=extra)
    lineage = json.loads(extra["lineage.json"])
    assert lineage["checkpoint"] == digests.digest(artifacts.checkpoint)
    assert lineage["weights"] == "raw"
    every = {"min": 1, "step": 1}
    assert lineage["free"] == {"batch": every, "height": every, "width": every}
    report = json.loads(artifacts.report.read_text())
    assert report["lineage"] == lineage and report["free"] == lineage["free"]


def test_the_forecast_is_the_librarys_on_training_images(artifacts):
    told = json.loads(artifacts.report.read_text())["forecast"]
    assert (told["images"], told["reason"]) == (128, None)
    assert [layer["name"] for layer in told["layers"]] == ["stage1", "stage2", "stage3", "head.linear"]
    model, header = checkpoints.load_model(artifacts.checkpoint)
    images = splits.open_split(artifacts.split)
    batches = [batch for batch, _ in images.sample("train", 128).batches("train", header.preprocessing, 64)]
    again = repnets.forecast(model, repnets.fuse(model, batches[0][:1]), batches).to_dict()
    for got, want in zip(told["layers"], again["layers"], strict=True):
        assert got["weight"] == want["weight"]
        for part in ("largest", "spread", "snr_db"):  # errors of logits depend on the signs drawn for each batch
            assert got["input"][part] == pytest.approx(want["input"][part], rel=1e-3)


@pytest.fixture
def fuse(artifacts, tmp_path, capsys):
    """Fuses the toy network after a change of its weights; gives fuse.json and what was said."""

    def run(change, **paths):
        state, header = checkpoints.read(artifacts.checkpoint)
        change(state)
        checkpoint = tmp_path / "checkpoint.safetensors"
        checkpoints.write(checkpoint, state, header)
        capsys.readouterr()
        reparameterize.run(
            NoSettings(),
            **{"checkpoint": checkpoint, "split": artifacts.split, **paths},
            fused=tmp_path / "fused.pt2",
            report=tmp_path / "fuse.json",
        )
        return json.loads((tmp_path / "fuse.json").read_text()), capsys.readouterr()

    return run


def widen(state):
    """Some channels of the identity's batch norm, and a head that has learned with them."""
    state["stage3.identity.weight"][::16] *= 80
    state["head.linear.weight"][:, ::16] /= 80


def test_a_layer_that_will_hurt_is_warned_of_at_each_run(fuse):
    built, said = fuse(widen)
    (risk,) = built["forecast"]["risks"]
    assert (risk["layer"], risk["hurts"], risk["cause"]) == ("stage3", "head.linear", "identity")
    assert said.err == f"warning: {risk['message']}\n"
    again, said_again = fuse(widen)
    assert again == built
    assert "reparameterize: from the store" in said_again.out
    assert said_again.err == said.err


def test_a_healthy_network_is_fused_without_a_word(fuse):
    built, said = fuse(lambda state: None)
    assert built["forecast"]["risks"] == []
    assert said.err == ""


def test_logits_that_are_all_the_same_are_told_and_fused_all_the_same(fuse):
    built, said = fuse(lambda state: state["head.linear.weight"].zero_())
    assert built["forecast"]["reason"] == "the logits are all the same"
    assert built["after"]["convolutions"] == 3
    assert said.err == (
        "warning: What int8 will do is not known: the logits are all the same. Of the weights there are figures in "
        "fuse.json.\n"
    )


def test_another_split_is_another_result(fuse, artifacts, tmp_path):
    """Training images are an input: the store must not answer for others."""
    other = tmp_path / "split.json"
    images = splits.open_split(artifacts.split)
    parts = {"train": images.parts["train"][::2], "val": images.parts["val"]}
    splits.write_split(
        other, splits.new_split(images.name, images.root, images.classes, images.sources, images.labels, parts)
    )
    first, second = (fuse(widen, **paths)[0] for paths in ({}, {"split": other}))
    assert first["regions"] == second["regions"]
    assert first["forecast"] != second["forecast"]


def test_many_layers_that_will_hurt_are_counted():
    risks = [Risk("deep", "deep", "sensitive", 0.1, f"Layer {number} will hurt.") for number in range(7)]
    lines = list(reparameterize._of_forecast(Forecast(128, None, 0.1, (), tuple(risks))))
    assert lines[:4] == [f"Layer {number} will hurt." for number in range(4)]
    assert lines[4:] == ["3 more layers will hurt in int8: see forecast in fuse.json."]
