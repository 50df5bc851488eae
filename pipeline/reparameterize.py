"""Fold every branch structure of a checkpoint's network into single convolutions.

Reads artifacts/<model>/checkpoint.safetensors. Writes fused.pt2, a torch.export program in which batch
size, height and width stay free, and fuse.json, which says what was folded into which layer, what was
not, and why. The program carries its lineage: the sha256 of the checkpoint that it was made from.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline import checkpoints, stage, store
from pipeline.config import NoSettings
from pipeline.manifest import write_json


def run(settings: NoSettings, *, checkpoint: Path, fused: Path, report: Path) -> None:
    """Fuse one network.

    Args:
        settings: none.
        checkpoint: artifacts/<model>/checkpoint.safetensors.
        fused: where the program goes, a .pt2 file.
        report: where fuse.json goes.

    Raises:
        RepnetsError: weights that are not finite, a network that cannot be captured.
    """
    store.cached(
        "reparameterize",
        settings=settings.model_dump(mode="json"),
        inputs={"checkpoint": checkpoint},
        outputs={"fused": fused, "report": report},
        code=("pipeline.reparameterize", *checkpoints.code_modules(checkpoint)),
        packages=("torch",),
        build=lambda places, _: _fuse(checkpoint, places),
    )


def _fuse(checkpoint: Path, places: dict[str, Path]) -> None:
    import torch

    from repnets.fusion import capture, fuse

    model, header = checkpoints.load_model(checkpoint)
    size = header["preprocessing"]["image_size"]
    example = torch.zeros(2, 3, size, size)
    result = fuse(model, example)
    lineage = {
        "checkpoint": store.digest(checkpoint),
        "arch": header["arch"],
        "weights": header["weights"],
        "data_digest": header["data_digest"],
    }
    torch.export.save(
        capture(result.module, example), places["fused"], extra_files={"lineage.json": json.dumps(lineage)}
    )
    write_json(places["report"], {"lineage": lineage, **result.report.to_dict()})
    print(result.report)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of this stage."""
    return stage.main(run, argv)


if __name__ == "__main__":
    sys.exit(main())
