"""What benchmarks/int8.py quantizes: networks that the pipeline's stages train here, and one that came trained.

Every network goes through the stages as in a run of the pipeline, and out of the store where it did before. Of each
data set there are three parts: what trains and calibrates; what the stages validate on, and decide by; and test images,
which no stage sees. Fashion-MNIST has test images of its own; of the digits, a fifth is kept for that.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.artifacts import store
from pipeline.artifacts.manifest import Preprocessing, read_json
from pipeline.config import project, stages
from pipeline.data import splits
from pipeline.errors import StageError
from pipeline.stages import jobs

if TYPE_CHECKING:
    import numpy as np
    from pydantic import BaseModel

PROJECT = Path(__file__).resolve().parents[1]
PRETRAINED = "efficientnet_lite0"
PICTURES = "pictures"
DATA = ("digits", "fashion_mnist", PICTURES)
IMAGE_SIZES = {"mobileone_s0": 64}  # others: 32
EPOCHS = {"digits": 10, "fashion_mnist": 3}
_PROBE_IMAGES = 3000  # to fit the last layer of a pretrained network, and to validate
_TRAIN_SHARE = 5 / 6  # of what the data set has to train with; the rest validates
_TOLERANCE = 1e-3  # of verify: hardly trained networks are badly conditioned, and int8 errs ten times as much
_BATCH = 64


@dataclass(frozen=True)
class Subject:
    """A network that is quantized.

    Attributes:
        title: what it is called: ``toy on digits``.
        folder: holds fused.pt2, quantized.pt2 and quantize.json, and is where more files can go.
        preprocessing: of its images.
        split: its ``train`` part calibrates, with so many of its images as `calibration_images` says, or all.
        test: its ``val`` part is the test images. They are read where that is iterated over, and not before.
        refusal: why the stage `quantize` would stop a build here; None where its gate held.
    """

    title: str
    folder: Path
    preprocessing: Preprocessing
    split: splits.Split
    test: splits.Split
    calibration_images: int
    refusal: str | None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the input of each file."""
        return (1, 3, self.preprocessing.image_size, self.preprocessing.image_size)

    def calibration(self) -> "np.ndarray":
        """The images that the stage `quantize` calibrates with, float32 (n, 3, H, W), never augmented."""
        import numpy as np

        images = self.split.sample("train", self.calibration_images)
        return np.concatenate([batch.numpy() for batch, _ in images.batches("train", self.preprocessing, _BATCH)])

    def repair(self) -> str:
        """The steps of the stage `quantize` that were kept, and the layers that it left in float, in words."""
        report = read_json(self.folder / "quantize.json")
        kept = ", ".join(one["name"] for one in report["steps"] if one["kept"] and not one["name"].startswith("naive"))
        in_float = ", ".join(one["layer"] for one in report["in_float"]["layers"])
        return f"{kept}; in float: {in_float or 'no layer'}"

    def test_images(self) -> "Iterator[tuple[np.ndarray, np.ndarray]]":
        """Images, float32 (n, 3, H, W), and their labels, int64 (n,)."""
        for images, labels in self.test.batches("val", self.preprocessing, _BATCH):
            yield images.numpy(), labels.numpy()


def trained(
    network: str, name: str, folder: Path, *, images: int, epochs: int | None, tests: int, max_drop: float
) -> Subject:
    """Train a network with the pipeline's stages, and quantize it.

    Args:
        network: a name of `repnets.list_models()`.
        name: of a data set.
        folder: an empty one.
        images: to train and validate with, at most.
        epochs: of training; None: as `EPOCHS` says.
        tests: how many test images, at most.
        max_drop: what quantize may lose on the validation images.
    """
    own, mine = _opened(name, folder, images)
    training = project.Training(epochs=epochs or EPOCHS[name], device="cpu")
    settings = stages.TrainSettings(
        arch=network,
        image_size=IMAGE_SIZES.get(network, 32),
        interpolation="bilinear",
        mean=None,
        std=None,
        training=training,
    )
    paths = {"checkpoint": folder / "checkpoint.safetensors", "split": folder / "split.json"}
    stage("train", settings, folder, **paths, metrics=folder / "metrics.jsonl")
    quantize = stages.QuantizeSettings(max_metric_drop=max_drop)
    return _after_checkpoint(f"{network} on {name}", folder, mine, own.sample("val", tests), quantize)


def goes_on(network: str, name: str) -> bool:
    """Whether a network is seen on a data set: what came trained on photographs, and not on digits of 8 x 8."""
    return name != "digits" if network == PRETRAINED else name != PICTURES


def pretrained(folder: Path, *, tests: int, max_drop: float) -> Subject:
    """EfficientNet-Lite0 with the weights of the package that ships them, on `PICTURES`; see `benchmarks.pretrained`.

    Args:
        folder, tests, max_drop: as for `trained`.
    """
    from benchmarks import pretrained as lite

    pictures = store.root() / "datasets" / "pictures"  # always there, so that the stages find what they made of it
    made = lite.split(pictures, folder / "test")
    splits.write_split(folder / "split.json", made["split"])
    _adopt(lite.weights(), lite.IMAGE_SIZE, folder)
    quantize = stages.QuantizeSettings(max_metric_drop=max_drop, calibration_images=lite.CALIBRATION_IMAGES)
    title = f"{PRETRAINED} on {PICTURES}"
    return _after_checkpoint(title, folder, made["split"], made["test"].sample("val", tests), quantize)


def probed(name: str, folder: Path, *, images: int, tests: int, max_drop: float) -> Subject:
    """EfficientNet-Lite0 with a last layer that is fitted to a data set; see `benchmarks.pretrained`.

    Args:
        name: of the data set.
        images: to fit and validate with, at most; never above 3,000.
        folder, tests, max_drop: as for `trained`.
    """
    from benchmarks import pretrained as lite

    own, mine = _opened(name, folder, min(images, _PROBE_IMAGES))
    preprocessing = mine.preprocessing(lite.PROBE_IMAGE_SIZE, "bicubic", lite.MEAN, lite.STD)
    lite.probe(mine, preprocessing, folder / "probed.pt")
    _adopt(folder / "probed.pt", lite.PROBE_IMAGE_SIZE, folder)
    quantize = stages.QuantizeSettings(max_metric_drop=max_drop)
    return _after_checkpoint(f"{PRETRAINED} on {name}", folder, mine, own.sample("val", tests), quantize)


def _adopt(weights: Path, image_size: int, folder: Path) -> None:
    from benchmarks import pretrained as lite

    facts = {"interpolation": "bicubic", "mean": lite.MEAN, "std": lite.STD}
    settings = stages.AdoptSettings(arch=lite.ARCH, image_size=image_size, **facts)
    paths = {"checkpoint": folder / "checkpoint.safetensors", "split": folder / "split.json"}
    stage("adopt", settings, folder, source=weights, **paths)


def _opened(name: str, folder: Path, images: int) -> tuple[splits.Split, splits.Split]:
    """A data set as it is, whose validation images test; and what of it trains and validates: split.json."""
    whole = folder / "whole.json"
    stage("split", stages.SplitSettings(name=name, root=None, val_fraction=0.2, split_seed=0), folder, output=whole)
    own = splits.open_split(whole)
    mine = divided(own, images)
    splits.write_split(folder / "split.json", mine)
    return own, mine


def divided(own: splits.Split, images: int) -> splits.Split:
    """A split whose validation images, too, are of the train part of another; that one's validation images test."""
    drawn = own.sample("train", images).parts["train"]
    middle = round(len(drawn) * _TRAIN_SHARE)
    parts = {"train": drawn[:middle], "val": drawn[middle:]}
    return splits.new_split(own.name, own.root, own.classes, own.sources, own.labels, parts)


def _after_checkpoint(
    title: str, folder: Path, mine: splits.Split, test: splits.Split, settings: stages.QuantizeSettings
) -> Subject:
    checkpoint, fused = {"checkpoint": folder / "checkpoint.safetensors"}, {"fused": folder / "fused.pt2"}
    place, verify = {"split": folder / "split.json"}, folder / "verify.json"
    stage("reparameterize", stages.NoSettings(), folder, **checkpoint, **place, **fused, report=folder / "fuse.json")
    tolerance = project.Verify(float32_tolerance=_TOLERANCE)
    stage("verify", tolerance, folder, **checkpoint, **place, **fused, output=verify)
    outputs = {"quantized": folder / "quantized.pt2", "report": folder / "quantize.json"}
    stage(
        "quantize", settings.model_copy(update={"may_lose": True}), folder, **fused, verify=verify, **place, **outputs
    )
    refusal = read_json(outputs["report"])["reason"]
    preprocessing = Preprocessing.from_dict(read_json(verify)["preprocessing"])
    return Subject(title, folder, preprocessing, mine, test, settings.calibration_images, refusal)


def stage(name: str, settings: "BaseModel", folder: Path, **paths: Path) -> None:
    """Run a stage of the pipeline in a process of its own, as Snakemake does.

    Raises:
        StageError: it failed, with its own words.
    """
    options = [word for key, path in paths.items() for word in (f"--{key}", str(path))]
    command = [sys.executable, "-m", "pipeline", name, "--settings", settings.model_dump_json(), *options]
    path = os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])
    environment = jobs.ENVIRONMENT | os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().rpartition("error: ")[2]
        raise StageError(f"{name}: {said}")
