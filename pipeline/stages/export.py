"""Export the files of a target: the form of the network that ships, and another form as the baseline.

The form that ships is the fused network, or for int8 the quantized one; the baseline is the branched network, or for
int8 the fused one.

The target's backend (pipeline/backends/) writes the files: an ONNX file and an engine for TensorRT, an ML program for
Core ML, a .pte for ExecuTorch. manifest.json beside them has their input and preprocessing, their lineage, the versions
of the exporter, and the sha256 of each.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import backends
from pipeline.artifacts import documents, evidence, store
from pipeline.artifacts.digests import Inputs
from pipeline.artifacts.export_result import ExportedForm, FileFacts, FreeRange, Lineage, Manifest, TensorFacts
from pipeline.artifacts.manifest import ExportSpec, versions
from pipeline.artifacts.verify_result import VerifyResult
from pipeline.config.backend_rules import BackendRules
from pipeline.config.stages import ExportSettings
from pipeline.errors import InputError
from pipeline.models import checkpoints, networks, program_file, programs

if TYPE_CHECKING:
    from torch import nn


def run(
    settings: ExportSettings,
    *,
    checkpoint: Path,
    fused: Path,
    verify: Path,
    manifest: Path,
    quantized: Path | None = None,
) -> None:
    """Export one network for one target.

    Args:
        settings: the target: backend, precision, forms, batch, image size and the backend's own options.
        checkpoint: artifacts/<model>/checkpoint.safetensors, for the branched form.
        fused: artifacts/<model>/fused.pt2.
        verify: artifacts/<model>/verify.json: the gate on this fused.pt2.
        manifest: where manifest.json goes; the files appear beside it.
        quantized: artifacts/<model>/quantized.pt2, for a target of int8.

    Raises:
        InputError: the network does not run at the target's image size; the branched form is requested, but the
            checkpoint is of a folded network; quantized.pt2 is missing, or was made from another fused.pt2;
            verify.json is of another checkpoint or fused.pt2.
        StageError: the exporter failed, or a package that it needs is not installed.
    """
    backend = backends.load(settings.backend)
    names = backends.file_names(settings.backend, settings.forms)
    inputs = Inputs({"checkpoint": checkpoint, "fused": fused, "quantized": quantized, "verify": verify})
    store.cached(
        "export",
        settings=settings.model_dump(mode="json"),
        inputs=inputs,
        outputs={name: manifest.with_name(name) for name in names} | {"manifest": manifest},
        code=("pipeline.stages.export", backends.module_name(settings.backend), *checkpoints.code_modules(checkpoint)),
        packages=("torch", *backend.packages),
        host=backend.host(),
        build=lambda places, _: _export(settings, inputs, places),
    )


def _export(settings: ExportSettings, inputs: Inputs, places: dict[str, Path]) -> None:
    backend = backends.load(settings.backend)
    checkpoint, fused, quantized, verify = inputs.paths.values()
    proved = evidence.read(VerifyResult, verify, inputs, "checkpoint", "fused")
    header = checkpoints.read_header(checkpoint)
    if header.is_folded and "branched" in settings.forms:
        raise InputError(
            f"{checkpoint} is of a network that was folded before it came here, so there is no branched form of it to "
            "export as the baseline. Export `fused` alone; for a baseline, adopt the checkpoint of its training."
        )
    if quantized and program_file.read_lineage(quantized).get("fused") != inputs.sha256["fused"]:
        raise InputError(
            f"{quantized} was made of another fused.pt2 than {fused}. Quantize again: snakemake {quantized}"
        )
    preprocessing = header.preprocessing
    if settings.image_size and preprocessing.inputs:
        raise InputError(
            f"`image_size` of the target {settings.target} is for networks of one image, and `{settings.model}` takes "
            f"{' and '.join(one.name for one in preprocessing.inputs)}, whose shapes `inputs` says. Leave it out."
        )
    if settings.image_size:
        preprocessing = replace(preprocessing, image_size=settings.image_size)
    modules = {form: programs.of_form(form, checkpoint, fused, quantized) for form in settings.forms}
    for module in modules.values():
        networks.require_runs(module, header.arch, preprocessing)
    if settings.precision == "fp16":
        _require_float16(modules["fused"], fused)
    shape = preprocessing.shape(settings.batch)
    shapes = preprocessing.shapes(settings.batch)
    static = {form: programs.static(module, *shapes) for form, module in modules.items()}
    outputs = programs.output_facts(next(iter(static.values())), bool(preprocessing.classes))
    spec = ExportSpec(
        precision=settings.precision,
        input_shape=shape,
        preprocessing=preprocessing,
        options=settings.options,
        output_names=tuple(one.name for one in outputs),
    )
    clashing = [name for name in spec.output_names if name in spec.inputs]
    if clashing:
        raise InputError(
            f"`{settings.model}` has an input and an output that are both named `{clashing[0]}`, which a file cannot "
            "have. Rename the input in its forward and under `inputs`."
        )
    taken = _inputs(spec, settings.options)
    written = {}
    for form, program in static.items():
        files = [places[name.format(form=form)] for name in backend.files()]
        precision = _precision_of(form, settings.precision, backend.rules)
        facts = backend.export(program, files, replace(spec, precision=precision))
        written[form] = ExportedForm(precision, {file.name: FileFacts.of(file) for file in files}, facts)
        print(f"{form}: {', '.join(file.name for file in files)}", flush=True)
    if backend.write_extras:
        backend.write_extras([places[name] for name in backend.extras], spec)
    documents.write(
        places["manifest"],
        Manifest(
            target=settings.target,
            model=settings.model,
            backend=settings.backend,
            precision=settings.precision,
            forms=written,
            extras={name: FileFacts.of(places[name]) for name in backend.extras},
            input=taken[0],
            outputs=outputs,
            preprocessing=preprocessing,
            lineage=Lineage(
                arch=header.arch,
                weights=header.weights,
                form=header.form,
                recalibrated=header.recalibrated,
                checkpoint=inputs.sha256["checkpoint"],
                fused=inputs.sha256["fused"],
                quantized=inputs.sha256.get("quantized"),
                verify=inputs.sha256["verify"],
                accuracy=proved.accuracy,
            ),
            versions=versions("torch", *backend.packages),
            further_inputs=taken[1:] or None,
        ),
    )


def _inputs(spec: ExportSpec, options: Mapping[str, Any]) -> tuple[TensorFacts, ...]:
    kind, free = "uint8" if options.get("normalization") else "float32", _free_sizes(options)
    return tuple(TensorFacts(name, shape, kind, free) for name, shape in spec.inputs.items())


def _require_float16(network: "nn.Module", fused: Path) -> None:
    import torch

    limit = torch.finfo(torch.float16).max
    for name, tensor in network.state_dict().items():
        if not tensor.is_floating_point() or "running_" in name:
            continue
        if (largest := float(tensor.abs().max())) > limit:
            raise InputError(
                f"{fused}: `{name}` holds {largest:.1e}, and float16 ends at {limit:,.0f}, so a file "
                "in fp16 would give infinite numbers. Write `precision: fp32` in target.yaml, or look at the batch "
                "norms that fuse.json lists under `bn_health`."
            )


def _precision_of(form: str, precision: str, rules: BackendRules | None) -> str:
    """The precision of one form: the target's; for int8, the baseline has the backend's preferred float precision."""
    if precision != "int8" or form == "quantized":
        return precision
    return rules.float_of_baseline if rules else "fp32"


def _free_sizes(options: Mapping[str, Any]) -> dict[str, FreeRange]:
    """The axes of the input with free sizes; all others are as in ``shape``."""
    batches = options.get("dynamic_batch")
    return {"batch": FreeRange(batches["min"], batches["max"])} if batches else {}
