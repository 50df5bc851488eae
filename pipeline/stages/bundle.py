"""Pack what a device needs into one file: dist/<model>-<target>-<digest>.tar, the same bytes for the same content.

In it: the exported file that ships (for TensorRT the ONNX file and the script that builds the engine on the device),
labels, preprocessing, golden images with their outputs, a self-test that needs the runtime alone, code to start from,
and bundle.json with lineage and the sha256 of every file. No date, path, user or host. docs/bundles.md has more.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from pipeline import backends
from pipeline.artifacts import digests, documents, evidence, store
from pipeline.artifacts.atomic import replacing
from pipeline.artifacts.bundle_result import BundledCheck, BundledOutput, BundleManifest, BundleResult, GoldenCase
from pipeline.artifacts.check_result import CheckResult
from pipeline.artifacts.digests import Inputs
from pipeline.artifacts.export_result import Manifest
from pipeline.artifacts.metric import AGREEMENT, NONE, R2
from pipeline.config.stages import BundleSettings
from pipeline.data import splits
from pipeline.deploy import bundle_file, golden, templates
from pipeline.errors import InputError


def run(
    settings: BundleSettings,
    *,
    manifest: Path,
    check: Path,
    files: list[Path],
    fused: Path,
    split: Path,
    dist: Path,
    output: Path,
    quantized: Path | None = None,
) -> None:
    """Make the bundle of one network for one target, and sign it if a key is set.

    Args:
        settings: the backend and its options; how many golden images, whether with the engine, which key.
        manifest: the manifest.json that export wrote.
        check: check.json: the gate must have held.
        files: the exported files beside the manifest, or the folder of all of them; those of the form that ships go in,
            others are left out.
        fused: artifacts/<model>/fused.pt2.
        split: artifacts/split.json; some of its validation images are the golden ones.
        dist: the folder that the bundle goes into.
        output: a JSON file that says which bundle it is: its path, digest and signature.
        quantized: artifacts/<model>/quantized.pt2, where the file that ships is of int8.

    Raises:
        InputError: a file is missing, or not the one that the manifest describes; check.json is of other files, or was
            not passed; the network takes several inputs; an engine is asked for that no device can use; the key cannot
            be used.
    """
    backend = backends.load(settings.backend)
    written = documents.read(Manifest, manifest)
    if written.further_inputs:
        raise InputError(
            f"`{written.model}` takes {' and '.join(one.name for one in written.inputs)}, and bundles are of networks "
            "of one input: their self-test and code give it one. Ship the files of the target's folder; its "
            "manifest.json tells the inputs."
        )
    source, program = _source(written, fused, quantized)
    listed = manifest.parent.iterdir() if files == [manifest.parent] else files
    exported = {file.name: file for file in listed if file.name in written.shipped_files}
    contents = exported | (backend.bundle.beside(settings.options) if backend.bundle.beside else {})
    texts = {f"text {text.name}": text for text in templates.shipped(settings.backend)}
    inputs = Inputs({"manifest": manifest, "check": check, program: source, "split": split} | contents | texts)

    def build(places: dict[str, Path], scratch: Path) -> None:
        written.require(exported, exported)
        evidence.require(written, manifest, inputs, program)
        checked = evidence.read(CheckResult, check, inputs, "manifest", program, "split", *exported)
        checked.require_passed(check)
        _pack(settings, written, checked, contents, source, split, places["bundle"], scratch)

    unnamed = dist / f".{written.model}-{written.target}.tar"
    store.cached(
        "bundle",
        settings=settings.model_dump(mode="json", exclude={"bundle": {"signing_key"}}),
        inputs=inputs,
        outputs={"bundle": unnamed},
        code=("pipeline.stages.bundle", backends.module_name(settings.backend)),
        packages=("torch", "torchvision", "scikit-learn", *backend.packages),
        build=build,
    )
    # Its name holds its digest, which nobody knows before: so the rule's output is a small file that names it.
    bundle = bundle_file.open_bundle(unnamed)
    tar = dist / f"{bundle.name}.tar"
    os.replace(unnamed, tar)
    signature = None
    if settings.bundle.signing_key:
        signature = bundle_file.sign(tar, Path(settings.bundle.signing_key))
    result = BundleResult(str(tar), bundle.digest, tar.stat().st_size, signature and str(signature))
    with replacing(output) as fresh:
        documents.write(fresh, result)
    print(f"bundle: {tar}{' and its signature' if signature else ''}", flush=True)


def _pack(
    settings: BundleSettings,
    written: Manifest,
    checked: CheckResult,
    contents: Mapping[str, Path],
    source: Path,
    split: Path,
    place: Path,
    scratch: Path,
) -> None:
    backend = backends.load(settings.backend)
    parts = backend.bundle
    entry, checked_form = written.shipped_form, checked.forms[written.shipped]
    main = entry.file_name
    given = [name for name in written.shipped_files if name in contents]
    written.require(contents, [main, *written.extras, *given])  # an engine need not be given
    engine = f"{Path(main).stem}{parts.machine_suffix}"
    with_engine = bool(settings.bundle.include_engine and parts.machine_suffix)
    if with_engine:
        parts.hold_machine_file(entry.facts, engine, engine in contents)
    made = golden.make(contents[main], written, source, split, settings.bundle.golden_images, backend)
    outputs = _outputs(written)
    described = None
    if parts.describe:
        described = parts.describe(settings.options, written.inputs, entry.facts if with_engine else None)
    images = splits.open_split(split)
    labels = images.classes if images.is_of_classifier or images.use.kind in ("mask", "boxes") else ()
    document = BundleManifest(
        model=written.model,
        target=written.target,
        backend=written.backend,
        form=written.shipped,
        precision=written.precision,
        created_by=written.versions,
        file=main,
        sha256_of_file=entry.files[main].sha256,
        run=("python3", "selftest.py"),
        time_limit_s=parts.time_limit_s,
        tolerance=golden.tolerance(checked_form, entry.precision),
        input=written.input,
        output=outputs[0],
        outputs=() if written.preprocessing.classes else outputs,
        preprocessing=written.preprocessing,
        golden=tuple(
            GoldenCase(f"golden/input{at}.bin", f"golden/output{at}.bin", one.labels) for at, one in enumerate(made)
        ),
        checked=BundledCheck(
            by=checked.checked_by,
            images=checked.images,
            accuracy=checked.accuracy.file if checked.accuracy.metric not in (AGREEMENT, R2, NONE) else None,
            converter=checked_form.converter,
            precision=checked_form.precision,
            agreement=checked_form.agreement,
            metric=checked.accuracy.metric,
            subjects=checked.subjects,
        ),
        lineage=written.lineage,
        facts=described or {},
        task=images.use.task,
        files={},
    )
    members: dict[str, Path | bytes] = {}
    for name, path in contents.items():
        if name != engine or with_engine:
            members |= _members(name, path)
    if labels:
        members["labels.txt"] = "".join(f"{label}\n" for label in labels).encode()
    for case, one in zip(document.golden, made, strict=True):
        members |= {case.input: one.input, case.output: one.output}
    members |= templates.texts(document, members, entry.facts)
    os.replace(bundle_file.write(scratch, members, document), place)


def _source(written: Manifest, fused: Path, quantized: Path | None) -> tuple[Path, str]:
    """The program that the file was made of, and its name among the inputs."""
    if written.shipped != "quantized":
        return fused, "fused"
    if quantized is None:
        raise InputError("the golden outputs of an int8 file are quantized.pt2's; name it with --quantized.")
    return quantized, "quantized"


def _members(name: str, path: Path) -> dict[str, Path | bytes]:
    if path.is_file():
        return {name: path}
    files = [file for file in path.rglob("*") if file.is_file() and file.name != digests.TIME_STAMP]
    return {f"{name}/{file.relative_to(path).as_posix()}": file for file in files}


def _outputs(written: Manifest) -> tuple[BundledOutput, ...]:
    """Of the file: a classifier of Core ML gives probabilities, by the class, under a name of its own."""
    told = written.shipped_form.facts.get("outputs", {})
    by_class = [name for name, kind in told.items() if kind == "dictionaryType"]
    kind = "probabilities" if by_class else "logits" if written.preprocessing.classes else "numbers"
    return tuple(BundledOutput((by_class or [one.name])[0], one.shape, one.dtype, kind) for one in written.outputs)
