"""Write the files that a target runs: the fused network, and the branched one as the baseline.

A target's backend (pipeline/backends/) makes them: an ONNX file and an engine for TensorRT, an ML program
for Core ML, a .pte for ExecuTorch. manifest.json beside them says how to feed them, what they were made
from, by what, and the sha256 of each.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import backends, checkpoints, networks, programs, stage, store
from pipeline.config import ExportSettings
from pipeline.errors import InputError
from pipeline.manifest import ExportSpec, Preprocessing, as_plain, read_json, versions, write_json

if TYPE_CHECKING:
    from torch import nn


def run(settings: ExportSettings, *, checkpoint: Path, fused: Path, verify: Path, manifest: Path) -> None:
    """Export one network for one target.

    Args:
        settings: the target: backend, precision, forms, batch, image size and the backend's own options.
        checkpoint: artifacts/<model>/checkpoint.safetensors, for the branched form.
        fused: artifacts/<model>/fused.pt2.
        verify: artifacts/<model>/verify.json; the gate must have held for this very fused.pt2.
        manifest: where manifest.json goes; the files appear beside it.

    Raises:
        InputError: the network does not run at the target's image size; or the branched form is asked for, but the
            network came folded.
        StageError: the exporter failed, or what it needs is not installed.
    """
    backend = backends.load(settings.backend)
    names = backends.file_names(settings.backend, settings.forms)
    store.cached(
        "export",
        settings=settings.model_dump(mode="json"),
        inputs={"checkpoint": checkpoint, "fused": fused, "verify": verify},
        outputs={name: manifest.with_name(name) for name in names} | {"manifest": manifest},
        code=("pipeline.export", backend.__name__, *checkpoints.code_modules(checkpoint)),
        packages=("torch", *backend.PACKAGES),
        host=backend.host(),
        build=lambda places, _: _export(settings, checkpoint, fused, verify, places),
    )


def _export(settings: ExportSettings, checkpoint: Path, fused: Path, verify: Path, places: dict[str, Path]) -> None:
    backend = backends.load(settings.backend)
    header = checkpoints.read_header(checkpoint)
    if checkpoints.is_folded(header) and "branched" in settings.forms:
        raise InputError(
            f"{checkpoint} is of a network that was folded before it came here, so there is no branched form of it to "
            "export as the baseline. Export `fused` alone; for a baseline, adopt the checkpoint of its training."
        )
    trained = Preprocessing.from_dict(header["preprocessing"])
    size = settings.image_size or trained.image_size
    preprocessing = replace(trained, image_size=size)
    modules = {form: _module(form, checkpoint, fused) for form in settings.forms}
    for module in modules.values():
        networks.require_runs(module, header["arch"], header["num_classes"], size)
    shape = (settings.batch, 3, size, size)
    spec = ExportSpec(
        precision=settings.precision, input_shape=shape, preprocessing=preprocessing, options=settings.options
    )
    forms = {}
    for form, module in modules.items():
        files = [places[name.format(form=form)] for name in backend.FILES]
        facts = backend.export(programs.static(module, shape), files, spec)
        forms[form] = {"files": {file.name: _file_facts(file) for file in files}, "facts": facts}
        print(f"{form}: {', '.join(file.name for file in files)}", flush=True)
    if backend.EXTRAS:
        backend.write_extras([places[name] for name in backend.EXTRAS], spec)
    write_json(
        places["manifest"],
        {
            "target": settings.target,
            "model": settings.model,
            "backend": settings.backend,
            "precision": settings.precision,
            "forms": forms,
            "extras": {name: _file_facts(places[name]) for name in backend.EXTRAS},
            "input": {
                "name": spec.input_name,
                "shape": list(shape),
                "dtype": "uint8" if settings.options.get("normalization") else "float32",
            },
            "output": {
                "name": spec.output_name,
                "shape": [shape[0], len(preprocessing.classes)],
                "dtype": "float32",
            },
            "preprocessing": as_plain(preprocessing),
            "lineage": {
                "arch": header["arch"],
                "weights": header["weights"],
                "form": header.get("form", "training"),
                "recalibrated": header.get("recalibrated"),
                "checkpoint": store.digest(checkpoint),
                "fused": store.digest(fused),
                "accuracy": read_json(verify)["accuracy"],
            },
            "versions": versions("torch", *backend.PACKAGES),
        },
    )


def _module(form: str, checkpoint: Path, fused: Path) -> "nn.Module":
    import torch

    return checkpoints.as_module(torch.export.load(fused)) if form == "fused" else checkpoints.load_model(checkpoint)[0]


def _file_facts(file: Path) -> dict[str, Any]:
    parts = [part for part in file.rglob("*") if part.is_file()] if file.is_dir() else [file]
    return {"sha256": store.digest(file), "size_bytes": sum(part.stat().st_size for part in parts)}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of this stage."""
    return stage.main(run, argv)


if __name__ == "__main__":
    sys.exit(main())
