"""A network whose statistics were spoiled gets its accuracy back, from training images alone."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import repnets
from pipeline.artifacts import digests
from pipeline.artifacts.checkpoint_header import CheckpointHeader
from pipeline.config.project import Training
from pipeline.config.stages import NoSettings, RecalibrateSettings
from pipeline.data import splits
from pipeline.errors import InputError
from pipeline.models import checkpoints, training
from pipeline.models.accuracy import scorer
from pipeline.stages import recalibrate, reparameterize
from repnets.batch_norms import bn_health


@pytest.fixture(scope="module")
def learned(artifacts) -> tuple[dict[str, torch.Tensor], CheckpointHeader]:
    """Weights and header of a toy network that knows digits."""
    images = splits.open_split(artifacts.split)
    torch.manual_seed(0)
    model = repnets.create_model("toy", num_classes=10)
    preprocessing = images.preprocessing(16, "bilinear")
    made = training.fit(model, images, preprocessing, Training(epochs=3))
    assert made.records[-1]["val_accuracy"] > 0.9
    _, header = checkpoints.read(artifacts.checkpoint)
    metrics = {"val_accuracy": made.records[-1]["val_accuracy"], "train_loss": 0.5}
    return made.state, replace(header, preprocessing=replace(header.preprocessing, image_size=16), metrics=metrics)


def spoiled(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As a checkpoint whose statistics never were written, and were filled in with those of construction."""
    state = copy.deepcopy(state)
    for name, tensor in state.items():
        if name.endswith("running_mean"):
            tensor.zero_()
        elif name.endswith("running_var"):
            tensor.fill_(1)
    return state


def recalibrated(folder: Path, artifacts, images: int) -> tuple[dict[str, torch.Tensor], CheckpointHeader]:
    recalibrate.run(
        RecalibrateSettings(recalibrate_bn=images),
        checkpoint=folder / "checkpoint.safetensors",
        split=artifacts.split,
        output=folder / "recalibrated.safetensors",
    )
    return checkpoints.read(folder / "recalibrated.safetensors")


def test_a_spoiled_network_gets_its_accuracy_back(learned, artifacts, tmp_path, capsys):
    state, header = learned
    path = tmp_path / "checkpoint.safetensors"
    checkpoints.write(path, spoiled(state), header)
    images = splits.open_split(artifacts.split)
    preprocessing = images.preprocessing(16, "bilinear")
    score = scorer(checkpoints.load_model(path)[0], images, preprocessing)
    before = score(checkpoints.load_model(path)[0])
    fresh, told = recalibrated(tmp_path, artifacts, 300)
    said = capsys.readouterr().out
    after = score(checkpoints.load_model(tmp_path / "recalibrated.safetensors")[0])
    assert before < 0.5
    assert after > header.metrics["val_accuracy"] - 0.03
    assert f"statistics of 300 training images; right on {after:.2%} of 359 validation images" in said
    assert f"before on {before:.2%}" in said
    assert all(
        torch.equal(fresh[name], tensor)
        for name, tensor in state.items()
        if "running" not in name and "num_b" not in name
    )
    assert told == replace(
        header,
        metrics={"val_accuracy": after, "train_loss": 0.5},
        recalibrated={"images": 300, "from": digests.digest(path)},
    )


def test_images_held_out_play_no_part_and_training_images_do(learned, artifacts, tmp_path):
    """The statistics of a split with other validation images are the same, with other training images not."""
    state, header = learned
    checkpoints.write(tmp_path / "checkpoint.safetensors", spoiled(state), header)
    whole = splits.open_split(artifacts.split)
    half = len(whole.parts["train"]) // 2
    found = {}
    for name, parts in {
        "as it is": whole.parts,
        "other val": {**whole.parts, "val": whole.parts["val"][:20]},
        "other train": {**whole.parts, "train": whole.parts["train"][:half]},
    }.items():
        path = tmp_path / f"{name}.json"
        splits.write_split(path, splits.new_split(whole.name, None, whole.classes, whole.sources, [], parts))
        output = tmp_path / f"{name}.safetensors"
        recalibrate.run(
            RecalibrateSettings(recalibrate_bn=64),
            checkpoint=tmp_path / "checkpoint.safetensors",
            split=path,
            output=output,
        )
        found[name] = checkpoints.read(output)[0]["stage1.dense.bn.running_mean"]
    assert torch.equal(found["as it is"], found["other val"])
    assert not torch.equal(found["as it is"], found["other train"])


def test_more_images_than_there_are_takes_them_all(learned, artifacts, tmp_path):
    checkpoints.write(tmp_path / "checkpoint.safetensors", learned[0], learned[1])
    _, told = recalibrated(tmp_path, artifacts, 10**6)
    assert told.recalibrated["images"] == splits.open_split(artifacts.split).size("train")


def test_the_same_images_give_the_same_bytes_and_their_number_is_in_the_key(
    learned, artifacts, tmp_path, monkeypatch, capsys
):
    checkpoints.write(tmp_path / "checkpoint.safetensors", learned[0], learned[1])
    recalibrated(tmp_path, artifacts, 64)
    first = (tmp_path / "recalibrated.safetensors").read_bytes()
    recalibrated(tmp_path, artifacts, 64)
    assert "recalibrate: from the store" in capsys.readouterr().out
    monkeypatch.setenv("REPNETS_STORE", str(tmp_path / "another store"))
    torch.manual_seed(77)
    recalibrated(tmp_path, artifacts, 64)
    assert "recalibrate: built" in capsys.readouterr().out
    assert (tmp_path / "recalibrated.safetensors").read_bytes() == first
    recalibrated(tmp_path, artifacts, 65)
    assert (tmp_path / "recalibrated.safetensors").read_bytes() != first


def test_nothing_asked_for_is_an_error(artifacts, tmp_path):
    with pytest.raises(InputError, match=r"recalibrate_bn is 0, so there is nothing to do. Set it under the model's"):
        recalibrate.run(
            RecalibrateSettings(recalibrate_bn=0),
            checkpoint=artifacts.checkpoint,
            split=artifacts.split,
            output=tmp_path / "recalibrated.safetensors",
        )


def test_fusing_warns_of_what_is_spoiled_and_is_silent_after_recalibration(learned, artifacts, tmp_path, capsys):
    state, header = learned

    def fused(name: str) -> tuple[dict, str]:
        capsys.readouterr()
        reparameterize.run(
            NoSettings(),
            checkpoint=tmp_path / name,
            split=artifacts.split,
            fused=tmp_path / "fused.pt2",
            report=tmp_path / "fuse.json",
        )
        return json.loads((tmp_path / "fuse.json").read_text()), capsys.readouterr().err

    checkpoints.write(tmp_path / "checkpoint.safetensors", spoiled(state), header)
    built, said = fused("checkpoint.safetensors")
    hit, said_again = fused("checkpoint.safetensors")
    assert said.count("warning: ") == 5  # of seven, four by name
    assert "warning: The batch norm 'stage1.dense.bn' has the statistics that it was made with" in said
    assert "warning: 3 more batch norms with `untouched` statistics: see bn_health in fuse.json." in said
    assert (said_again, hit) == (said, built)
    assert [finding["kind"] for finding in built["bn_health"]] == ["untouched"] * 7
    assert set(built["bn_health"][0]) == {"layer", "kind", "value", "message"}
    recalibrated(tmp_path, artifacts, 300)
    healthy, said = fused("recalibrated.safetensors")
    model, _ = checkpoints.load_model(tmp_path / "recalibrated.safetensors")
    assert (healthy["bn_health"], said, bn_health(model)) == ([], "", [])
    assert healthy["lineage"]["recalibrated"]["images"] == 300
    assert built["lineage"]["recalibrated"] is None
