"""Measure a network on this CPU, for the targets whose own runtime is not on this machine.

ONNX Runtime measures it in fp32, ExecuTorch in int8, in the forms of the target. The figures show the speed-up on a
CPU, and nothing about the target: in its bench.json they are given under `reference`. A network is measured once for
all targets that have the same forms, image size, batch and settings under `bench`.
"""

from dataclasses import replace
from pathlib import Path

from pipeline import backends
from pipeline.artifacts import documents, store
from pipeline.artifacts.bench_result import ReferenceResult
from pipeline.artifacts.digests import Inputs
from pipeline.artifacts.manifest import ExportSpec
from pipeline.backends.worker.client import Job
from pipeline.benchmark import conditions, measurement, runners
from pipeline.config.stages import ReferenceSettings
from pipeline.models import checkpoints, programs
from pipeline.report import console


def run(
    settings: ReferenceSettings, *, checkpoint: Path, fused: Path, output: Path, quantized: Path | None = None
) -> None:
    """Export the forms of one network for the reference runtime, time them, and print the speed-up.

    Args:
        settings: precision, forms, batch, image size, and how long to measure.
        checkpoint: artifacts/<model>/checkpoint.safetensors, for the branched form and the preprocessing.
        fused: artifacts/<model>/fused.pt2.
        output: where reference.json goes.
        quantized: artifacts/<model>/quantized.pt2, for int8.

    Raises:
        StageError: the export or the runtime failed.
    """
    backend = backends.stand_in(settings.precision)
    inputs = Inputs({"checkpoint": checkpoint, "fused": fused, "quantized": quantized})

    def build(places: dict[str, Path], scratch: Path) -> None:
        header = checkpoints.read_header(checkpoint)
        preprocessing = header.preprocessing
        if settings.image_size and preprocessing.inputs is None:
            preprocessing = replace(preprocessing, image_size=settings.image_size)
        shape = preprocessing.shape(settings.batch)
        files = {}
        for form in settings.forms:
            files[form] = scratch / backend.file_name(form)
            module = programs.of_form(form, checkpoint, fused, quantized)
            program = programs.static(module, *preprocessing.shapes(settings.batch))
            backend.export(program, [files[form]], ExportSpec("fp32", shape, preprocessing))
        runner = runners.here({form: Job(backend.name, file) for form, file in files.items()})
        measured = measurement.measure(runner, list(files), shape, settings.bench)
        about = {"subjects": inputs.sha256, "backend": backend.name, "precision": settings.precision}
        result = ReferenceResult(**about, **vars(measured))
        documents.write(places["reference"], result)

    store.cached(
        "reference",
        settings=settings.model_dump(mode="json"),
        inputs=inputs,
        outputs={"reference": output},
        code=("pipeline.stages.reference", backends.module_name(backend.name), *checkpoints.code_modules(checkpoint)),
        packages=("torch", *backend.packages),
        host=conditions.fingerprint(),
        build=build,
    )
    name = f"{backend.title} {settings.precision} here"
    print(console.reference(name, documents.read(ReferenceResult, output)), flush=True)
