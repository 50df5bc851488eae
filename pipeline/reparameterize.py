"""Fold every branch structure of a checkpoint's network into single convolutions.

Reads the checkpoint, artifacts/<model>/checkpoint.safetensors, or recalibrated.safetensors beside it. Writes
fused.pt2, a torch.export program in which batch size, height and width stay free, and fuse.json, which says
what was folded into which layer, what was not, and why. The program carries its lineage: the sha256 of the
checkpoint that it was made from.

Batch norms whose statistics are out of the ordinary are warned about, and listed in fuse.json under
`bn_health`; the network is fused all the same.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline import checkpoints, stage, store
from pipeline.config import NoSettings
from pipeline.manifest import read_json, write_json

_SHOWN = 4


def run(settings: NoSettings, *, checkpoint: Path, fused: Path, report: Path) -> None:
    """Fuse one network.

    Args:
        settings: none.
        checkpoint: of the branched network.
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
    for line in _warnings(read_json(report)["bn_health"]):
        print(f"warning: {line}", file=sys.stderr, flush=True)


def _fuse(checkpoint: Path, places: dict[str, Path]) -> None:
    import torch

    from repnets.fusion import capture, fuse
    from repnets.health import bn_health

    model, header = checkpoints.load_model(checkpoint)
    size = header["preprocessing"]["image_size"]
    example = torch.zeros(2, 3, size, size)
    result = fuse(model, example)
    lineage = {
        "checkpoint": store.digest(checkpoint),
        "arch": header["arch"],
        "weights": header["weights"],
        "data_digest": header["data_digest"],
        "recalibrated": header.get("recalibrated"),
    }
    torch.export.save(
        capture(result.module, example), places["fused"], extra_files={"lineage.json": json.dumps(lineage)}
    )
    health = [asdict(finding) for finding in bn_health(model)]
    write_json(places["report"], {"lineage": lineage, "bn_health": health, **result.report.to_dict()})
    print(result.report)


def _warnings(health: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each finding of a kind, and after a few of them how many more there are."""
    for kind in dict.fromkeys(finding["kind"] for finding in health):
        messages = [finding["message"] for finding in health if finding["kind"] == kind]
        yield from messages[:_SHOWN]
        if len(messages) > _SHOWN:
            yield f"{len(messages) - _SHOWN} more batch norms with `{kind}` statistics: see bn_health in fuse.json."


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of this stage."""
    return stage.main(run, argv)


if __name__ == "__main__":
    sys.exit(main())
