"""Gate: the exported file computes what the program it came from computes, and is as accurate.

Every validation image goes through the file itself, in a runtime that reads it on this machine. Held:

1. its logits against those of fused.pt2, within the tolerance of the file's precision; or, where the network by
   itself loses more in half precision, as dead channels make it, within twice what fused.pt2 loses in it;
2. its top-1 accuracy against that of the fused network, within `max_accuracy_drop`;
3. a census of its operations: as many convolutions as the fused network has, no batch norm left.

check.json says by which runtime, and says so where none could run the file here.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import backends, checkpoints, stage, store, worker
from pipeline.config import CheckSettings
from pipeline.errors import GateError
from pipeline.manifest import Preprocessing, read_json, write_json

if TYPE_CHECKING:
    import numpy as np

_TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2}
_SLACK = 2  # times what fused.pt2 itself loses in half precision: runtimes round in other places than torch


def run(
    settings: CheckSettings,
    *,
    manifest: Path,
    files: list[Path],
    fused: Path,
    verify: Path,
    split: Path,
    output: Path,
) -> None:
    """Check the exported files of one network for one target.

    Args:
        settings: the backend, and the gates.
        manifest: the manifest.json that export wrote.
        files: the exported files beside it.
        fused: artifacts/<model>/fused.pt2.
        verify: artifacts/<model>/verify.json, for the accuracies of branched and fused.
        split: artifacts/split.json; its validation images are the input.
        output: where check.json goes.

    Raises:
        GateError: a file departs from its program, lost accuracy, or is not fused; names the file,
            the image, the figures and the tolerance.
    """
    backend = backends.load(settings.backend)
    store.cached(
        "check",
        settings=settings.model_dump(mode="json"),
        inputs={"manifest": manifest, "fused": fused, "verify": verify, "split": split}
        | {file.name: file for file in files},
        outputs={"check": output},
        code=("pipeline.check", "pipeline.worker", backend.__name__),
        packages=("torch", "torchvision", "scikit-learn", *backend.PACKAGES),
        build=lambda places, _: write_json(places["check"], _check(settings, manifest, files, fused, verify, split)),
    )


def _check(
    settings: CheckSettings, manifest: Path, files: list[Path], fused: Path, verify: Path, split: Path
) -> dict[str, Any]:
    backend = backends.load(settings.backend)
    written, proved = read_json(manifest), read_json(verify)
    images, labels, logits = _reference(fused, split, written)
    own_loss = partial(_loss_in_half, fused, images, logits)
    places = {file.name: file for file in files}
    forms: dict[str, Any] = {}
    accuracy: dict[str, float | None] = {**proved["accuracy"], "file": None}
    for form, entry in written["forms"].items():
        for name, facts in entry["files"].items():
            if store.digest(places[name]) != facts["sha256"]:
                raise GateError(f"{places[name]} is not the file that its manifest describes; export it again.")
        file = places[next(iter(entry["files"]))]
        forms[form] = {"census": backend.census(file), "max_relative_error": None, "agreement": None}
        if form == "fused":
            _hold_census(file, forms[form]["census"], _convolutions(fused))
        if backend.CHECKED_BY is None:
            continue
        got = worker.predict(settings.backend, file, images, batch=written["input"]["shape"][0])
        forms[form] |= _hold_logits(settings, file, written["precision"], got, logits, own_loss)
        share = float((got.argmax(1) == labels).mean())
        forms[form]["accuracy"] = share
        _hold_accuracy(settings, file, share, float((logits.argmax(1) == labels).mean()))
        if form == "fused":
            accuracy["file"] = share
    return {
        "status": "ok",
        "checked_by": backend.CHECKED_BY,
        "not_checked": None if backend.CHECKED_BY else backend.unavailable().reason,
        "images": len(images),
        "accuracy": accuracy,
        "forms": forms,
    }


def _reference(fused: Path, split: Path, written: dict[str, Any]) -> "tuple[np.ndarray, np.ndarray, np.ndarray]":
    import torch

    from pipeline.data import open_split

    size = written["input"]["shape"][-1]
    preprocessing = Preprocessing.from_dict({**written["preprocessing"], "image_size": size})
    program = checkpoints.as_module(torch.export.load(fused))
    batches = list(open_split(split).batches("val", preprocessing, 256))
    if not batches:
        raise GateError("the validation split holds no image, so nothing could be compared.")
    with torch.inference_mode():
        logits = torch.cat([program(images) for images, _ in batches])
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return images.numpy(), labels.numpy(), logits.numpy()


def _loss_in_half(fused: Path, images: "np.ndarray", logits: "np.ndarray") -> float:
    """How far the logits of fused.pt2 itself move, of the largest, when torch computes it in half precision."""
    import torch

    program = checkpoints.as_module(torch.export.load(fused)).half()
    with torch.inference_mode():
        halves = [program(batch.half()).float() for batch in torch.from_numpy(images).split(64)]
    want = torch.from_numpy(logits)
    return float((torch.cat(halves) - want).abs().max() / want.abs().max())


def _convolutions(fused: Path) -> int:
    import torch

    nodes = torch.export.load(fused).graph.nodes
    return sum(node.op == "call_function" and str(node.target).startswith("aten.conv") for node in nodes)


def _hold_census(file: Path, census: dict[str, int], convolutions: int) -> None:
    if census["batch_norm"] or census["convolution"] != convolutions:
        raise GateError(
            f"{file}: holds {census['convolution']} convolutions and {census['batch_norm']} batch norms, but the fused "
            f"network has {convolutions} and none. The exporter undid the fold, or was given the branched network."
        )


def _hold_logits(
    settings: CheckSettings,
    file: Path,
    precision: str,
    got: "np.ndarray",
    want: "np.ndarray",
    own_loss: Callable[[], float],
) -> dict[str, Any]:
    import numpy as np

    tolerance = settings.check.tolerance or _TOLERANCE[precision]
    errors = np.abs(got - want) / np.abs(want).max()
    image, logit = np.unravel_index(np.argmax(errors), errors.shape)  # argmax stops at a NaN, as it should
    error = float(errors[image, logit])
    held: dict[str, Any] = {"tolerance": tolerance, "max_relative_error": error}
    if not error <= tolerance:
        # a tolerance that the user set is held as it is
        by_itself = own_loss() if precision == "fp16" and settings.check.tolerance is None else 0.0
        if not error <= _SLACK * by_itself:
            here, there = got[image, logit], want[image, logit]
            program = f", and fused.pt2 itself moves by {by_itself:.1e} in half precision" if by_itself else ""
            raise GateError(
                f"{file}: logit {logit} of validation image {image} is {here:.6g} and {there:.6g} in fused.pt2, "
                f"{error:.1e} of the largest logit; tolerance for {precision} is {tolerance:.0e}{program}. Try "
                f"`precision: fp32` in target.yaml; if that holds, the network overflows or loses too much in "
                f"{precision}."
            )
        held["loss_of_fused"] = by_itself
        print(
            f"warning: {file.name} is up to {error:.1e} of the largest logit from fused.pt2, which itself moves by "
            f"{by_itself:.1e} in half precision: batch norms of huge gain, named in fuse.json, do that. Its accuracy "
            "is held below.",
            file=sys.stderr,
        )
    return held | {"agreement": float((got.argmax(1) == want.argmax(1)).mean())}


def _hold_accuracy(settings: CheckSettings, file: Path, share: float, fused_share: float) -> None:
    if fused_share - share > settings.check.max_accuracy_drop:
        raise GateError(
            f"{file}: top-1 is {share:.2%} on the validation set, that of the fused network {fused_share:.2%}; allowed "
            f"is a drop of {settings.check.max_accuracy_drop:.2%} (check.max_accuracy_drop). Try a higher precision."
        )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of this stage."""
    return stage.main(run, argv)


if __name__ == "__main__":
    sys.exit(main())
