"""Fold every branch structure of a checkpoint's network into single convolutions.

Reads the checkpoint, artifacts/<model>/checkpoint.safetensors, or recalibrated.safetensors beside it. Writes
fused.pt2, a torch.export program in which batch size, height and width stay free where the network allows, and
fuse.json, which says what was folded into which layer, what was not, and why. The program carries its lineage: the
sha256 of the checkpoint that it was made from, and under `free` the sizes that it takes.

Batch norms whose statistics are out of the ordinary are warned about, and listed in fuse.json under
`bn_health`; the network is fused all the same. So are layers that will hurt in int8, under `forecast`: what
rounding each layer does to the logits of some training images, and what makes it so (docs/int8-forecast.md).
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.artifacts import digests, documents, store
from pipeline.artifacts.digests import Inputs
from pipeline.artifacts.fuse_result import BatchNormFinding, Forecast, FuseResult
from pipeline.artifacts.manifest import Preprocessing
from pipeline.config.stages import NoSettings
from pipeline.data import splits
from pipeline.errors import InputError
from pipeline.models import checkpoints, program_file, several_inputs

if TYPE_CHECKING:
    from torch import Tensor, nn

    from repnets.fusion.report import FuseReport

_SHOWN = 4
_IMAGES = 128  # for the forecast; fewer where the network is so large that they would take minutes
_FEWEST = 16
_MACS = 4e11
_BATCH = 8  # at once: what every layer gives is held for the way back


def run(settings: NoSettings, *, checkpoint: Path, split: Path, fused: Path, report: Path) -> None:
    """Fuse one network.

    Args:
        settings: none.
        checkpoint: of the branched network.
        split: artifacts/split.json; the forecast is taken from images of its train part.
        fused: where the program goes, a .pt2 file.
        report: where fuse.json goes.

    Raises:
        RepnetsError: weights that are not finite, a network that cannot be captured.
        InputError: what the network gives is beyond float32, or it takes one number of images alone.
    """
    inputs = Inputs({"checkpoint": checkpoint, "split": split})
    store.cached(
        "reparameterize",
        settings=settings.model_dump(mode="json"),
        inputs=inputs,
        outputs={"fused": fused, "report": report},
        code=("pipeline.stages.reparameterize", *checkpoints.code_modules(checkpoint)),
        packages=("torch", "torchvision", "scikit-learn", "pillow"),
        build=lambda places, _: _fuse(inputs, places),
    )
    written = documents.read(FuseResult, report)
    for line in (*_of_health(written.bn_health), *_of_forecast(written.forecast)):
        print(f"warning: {line}", file=sys.stderr, flush=True)


def _fuse(inputs: Inputs, places: dict[str, Path]) -> None:
    import torch

    from repnets.batch_norms import bn_health
    from repnets.fusion.capture import capture
    from repnets.fusion.engine import fuse
    from repnets.quantization.forecast import forecast

    model, header = checkpoints.load_model(inputs.paths["checkpoint"])
    several = header.preprocessing.inputs
    example = tuple(map(torch.zeros, header.preprocessing.shapes(2)))
    result = fuse(model, example)
    lineage = {
        "checkpoint": inputs.sha256["checkpoint"],
        "arch": header.arch,
        "weights": header.weights,
        "data_digest": header.data_digest,
        "recalibrated": header.recalibrated,
    }
    split = splits.open_split(inputs.paths["split"])
    images = _images(split, header.preprocessing, result.report)
    shown = images or next(split.batches("val", header.preprocessing, _BATCH))
    _require_finite(several_inputs.of_samples(model, header.preprocessing), shown[0], inputs.paths["checkpoint"])
    if "batch" not in result.report.free:
        raise InputError(
            f"`{header.arch}` takes {len(example[0])} images at once and no other number, so it cannot be verified on "
            "a validation set: its forward depends on the batch size, or mixes images. Let it treat each image alike, "
            "for example `x.shape[0]` in place of a number."
        )
    lineage = program_file.write(capture(result.module, example), places["fused"], lineage)
    subjects = inputs.sha256 | {"fused": digests.digest(places["fused"])}
    if several is not None:
        result = replace(result, module=several_inputs.join_inputs(result.module, several))
    told = {"bn_health": documents.plain(bn_health(model)), "forecast": forecast(model, result, images).to_dict()}
    documents.write(
        places["report"],
        documents.of(FuseResult, {"subjects": subjects, "lineage": lineage, **told, **result.report.to_dict()}),
    )
    print(result.report)


def _require_finite(model: "nn.Module", images: "Tensor", checkpoint: Path) -> None:
    import torch

    from repnets.outputs import rows

    with torch.no_grad():
        wrong = ~rows(model(images)).isfinite().all(1)
    if wrong.any():
        raise InputError(
            f"{checkpoint}: in float32 the network gives infinite or NaN numbers for {int(wrong.sum())} of "
            f"{len(images)} images, so nothing can be proved of it: its weights are too large. Take an earlier "
            "checkpoint, or train again with a lower learning rate."
        )


def _images(split: splits.Split, preprocessing: Preprocessing, report: "FuseReport") -> "list[Tensor]":
    """Images of the train part, the same ones for the same network, prepared as for inference; none of `none`."""
    wanted = max(_FEWEST, min(_IMAGES, int(_MACS / max(report.after.macs, 1))))
    sample = split.sample("train", wanted)
    return [batch for batch, _ in sample.batches("train", preprocessing, _BATCH)]


def _of_health(health: Sequence[BatchNormFinding]) -> Iterator[str]:
    """A line for each finding of a kind, and after a few of them how many more there are."""
    for kind in dict.fromkeys(finding.kind for finding in health):
        messages = [finding.message for finding in health if finding.kind == kind]
        yield from messages[:_SHOWN]
        if len(messages) > _SHOWN:
            yield f"{len(messages) - _SHOWN} more batch norms with `{kind}` statistics: see bn_health in fuse.json."


def _of_forecast(told: Forecast) -> Iterator[str]:
    """A line for each of the worst layers, and how many more there are; or why nothing is known."""
    if told.reason:
        yield f"What int8 will do is not known: {told.reason}. Of the weights there are figures in fuse.json."
    risks = told.risks
    yield from (risk.message for risk in risks[:_SHOWN])
    if len(risks) > _SHOWN:
        yield f"{len(risks) - _SHOWN} more layers will hurt in int8: see forecast in fuse.json."
