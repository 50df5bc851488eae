"""The user's own network goes through the whole DAG by a change of the configuration alone."""

import json
import shutil

import pytest

from pipeline.artifacts import digests

pytestmark = pytest.mark.slow

CONFIG = """
data: {name: digits, image_size: 16}
models:
  toy: {training: {epochs: 1}}
  mine: {arch: "mynets.small:factory", recalibrate_bn: 256}
training: {epochs: 2}
targets:
  executorch: {bench: {min_runs: 10, max_seconds: 0.1, warmup_seconds: 0, launches: [1, 1]}}
"""
BLOCK = """
from torch import nn


class ThreeWays(nn.Module):
    \"\"\"A block that this project does not know: 3x3, 1x3 and 3x1, each with its batch norm, and a skip.\"\"\"

    def __init__(self, inputs, outputs):
        super().__init__()
        self.ways = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, outputs, size, padding=padding, bias=False), nn.BatchNorm2d(outputs))
            for size, padding in ((3, 1), ((1, 3), (0, 1)), ((3, 1), (1, 0)))
        )
        self.skip = nn.BatchNorm2d(inputs) if inputs == outputs else None

    def forward(self, x):
        y = sum(way(x) for way in self.ways)
        return (y if self.skip is None else y + self.skip(x)).relu()
"""
NETWORK = """
from torch import nn

from .blocks import ThreeWays

WIDTH = 16


def factory(num_classes):
    return nn.Sequential(
        ThreeWays(3, WIDTH), nn.MaxPool2d(2), ThreeWays(WIDTH, WIDTH), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(WIDTH, num_classes),
    )
"""
BUILT = ("targets/executorch/mine/bench.json", "artifacts/toy/checkpoint.safetensors")


@pytest.fixture(scope="module")
def own(new_clone, tmp_path_factory):
    """A clone in which a network of the user's own was built, from training to bench, and the toy trained."""
    folder = tmp_path_factory.mktemp("own")
    clone = new_clone(folder / "clone", folder / "store", CONFIG)
    for target in ("tensorrt", "coreml"):
        shutil.rmtree(clone.folder / "targets" / target)
    (clone.folder / "mynets").mkdir()
    (clone.folder / "mynets/blocks.py").write_text(BLOCK)
    (clone.folder / "mynets/small.py").write_text(NETWORK)
    run = clone.snakemake("--cores", "2", *BUILT)
    assert run.code == 0, run.output + "".join(clone.logs().values())
    return clone


def read(path):
    return json.loads(path.read_text())


def test_it_is_fused_proved_checked_and_timed(own):
    folder = own.folder / "artifacts/mine"
    fuse = read(folder / "fuse.json")
    assert (fuse["before"]["convolutions"], fuse["after"]["convolutions"]) == (6, 2)
    assert (fuse["before"]["batch_norms"], fuse["after"]["batch_norms"]) == (7, 0)
    assert read(folder / "verify.json")["agreement"] == 1.0
    checked = read(own.folder / "targets/executorch/mine/check.json")
    assert checked["forms"]["fused"]["census"]["convolution"] == 2
    assert checked["accuracy"]["file"] > 0.3
    assert read(own.folder / "targets/executorch/mine/bench.json")["status"] == "ok"


def test_what_was_recalibrated_is_what_is_shipped(own):
    folder = own.folder / "artifacts/mine"
    lineage = read(own.folder / "targets/executorch/mine/manifest.json")["lineage"]
    assert lineage["arch"] == "mynets.small:factory"
    assert lineage["checkpoint"] == digests.digest(folder / "recalibrated.safetensors")
    assert lineage["recalibrated"] == {"images": 256, "from": digests.digest(folder / "checkpoint.safetensors")}
    assert read(folder / "verify.json")["subjects"]["checkpoint"] == lineage["checkpoint"]
    assert not (own.folder / "artifacts/toy/recalibrated.safetensors").exists()


def test_an_edit_of_it_rebuilds_it_and_nothing_else(own, tmp_path):
    clone = own.copy(tmp_path)
    with (clone.folder / "mynets/blocks.py").open("a") as file:
        file.write("\n# a comment\n")
    assert clone.snakemake(*BUILT).jobs == {}
    (clone.folder / "mynets/blocks.py").write_text(BLOCK.replace("(3, 1), ((1, 3)", "(5, 2), ((1, 3)"))
    run = clone.snakemake("artifacts/mine/verify.json", "artifacts/toy/checkpoint.safetensors")
    assert run.code == 0, run.output
    assert run.jobs == dict.fromkeys(("train", "recalibrate", "reparameterize", "verify"), 1)
    fuse = read(clone.folder / "artifacts/mine/fuse.json")
    assert [region["kernel_size"] for region in fuse["regions"]][:2] == [[5, 5], [5, 5]]


def test_another_number_of_images_does_not_train_again(own, tmp_path):
    clone = own.copy(tmp_path)
    config = clone.folder / "config.yaml"
    config.write_text(config.read_text().replace("recalibrate_bn: 256", "recalibrate_bn: 128"))
    run = clone.snakemake("artifacts/mine/verify.json")
    assert run.code == 0, run.output
    assert set(run.jobs) == {"recalibrate", "reparameterize", "verify"}


def test_a_mistake_in_it_ends_with_2_before_anything_runs(own, tmp_path):
    clone = own.copy(tmp_path)
    config = clone.folder / "config.yaml"
    config.write_text(config.read_text().replace("mynets.small:factory", "mynets.small:factori"))
    run = clone.snakemake("all")
    assert run.code == 2
    assert "config.yaml, line 5: mynets/small.py has no `factori`; did you mean `factory`?" in run.output
    assert run.jobs == {}
    assert "Traceback" not in run.output
