"""Gate: the exported file computes what the program it came from computes, and is as accurate.

The file itself runs, in a runtime that reads it on this machine. The gates, in order:

1. each file is the one that the manifest describes, and was exported from these programs; the manifest's preprocessing
   is the network's, and its shapes, types and names are those that each file itself declares;
2. a census of its operations: the convolutions of the fused network, no batch norm and no branch that it does not have,
   and as many layers in int8 as the program has;
3. the converter is exact: in float32, with the weights rounded as the file stores them, the file gives what the program
   gives, to 1e-5 of the largest logit, or within twice what float32 itself costs the network; where the file rounds
   numbers other than weights, as the square root of 2 in a GELU that is written by its formula, to 5e-4 or within twice
   what such rounding costs the network. Weights that are compressed are read from the file, and each is held against
   the network's own by what its scheme may change;
4. its precision: in its own arithmetic its logits are those of fused.pt2 in float32, with the weights of the file where
   it compresses them, on the whole validation set, within the tolerance of the precision; or, where the network by
   itself loses more in half precision, as dead channels make it, within twice what fused.pt2 loses in it;
5. its score by the task's metric, top-1 of classifiers, against that of the fused network, within `max_metric_drop`.

With `check: {images: N}`, 4 and 5 are on so many validation images, drawn at random, the same each time; check.json and
the report say so.

A file in int8 has the same integers as quantized.pt2, and is held against that: in 3, with what is not int8 in float32,
an image may on average be off by half a last digit, since runtimes round the middle between two integers their own way;
in 4, no logit by more than the tolerance, and no class differs but where two logits are that close, which are listed.

Where 3 or 4 fails, the message names the first layer whose output departs. check.json says by which runtime all this
was found, and what could not be.
"""

from dataclasses import asdict, replace
from pathlib import Path

from pipeline import backends
from pipeline.artifacts import documents, evidence, store
from pipeline.artifacts.check_result import CheckedForm, CheckResult, FileAccuracy, Sample
from pipeline.artifacts.digests import Inputs
from pipeline.artifacts.export_result import Manifest
from pipeline.artifacts.manifest import Preprocessing
from pipeline.artifacts.verify_result import VerifyResult
from pipeline.backends import signatures
from pipeline.backends.worker import client
from pipeline.config.stages import CheckSettings
from pipeline.data import splits
from pipeline.errors import GateError
from pipeline.models import programs
from pipeline.models.accuracy import METRIC_PACKAGES
from pipeline.verification import declared, gates
from pipeline.verification.reference import Reference, spec_of

_SHOWN_FIELDS = ("mean", "std", "color_order", "resize", "interpolation", "classes", "inputs")


def run(
    settings: CheckSettings,
    *,
    manifest: Path,
    files: list[Path],
    fused: Path,
    verify: Path,
    split: Path,
    output: Path,
    quantized: Path | None = None,
) -> None:
    """Check the exported files of one network for one target.

    Args:
        settings: the backend, and the gates.
        manifest: the manifest.json that export wrote.
        files: the exported files beside it.
        fused: artifacts/<model>/fused.pt2.
        verify: artifacts/<model>/verify.json, for the preprocessing, and the accuracies of branched and fused.
        split: artifacts/split.json; its validation images are the input.
        output: where check.json goes.
        quantized: artifacts/<model>/quantized.pt2, where the target is of int8.

    Raises:
        InputError: verify.json is of another fused.pt2 or split; the manifest is of other programs.
        GateError: a file departs from its program, lost accuracy, is not fused, or not in int8; names the file, the
            image, the figures, the tolerance and the layer. A candidate of `precision: auto` may lose by its precision
            or its accuracy: then check.json says so.
    """
    backend = backends.load(settings.backend)
    inputs = Inputs(
        {"manifest": manifest, "fused": fused, "quantized": quantized, "verify": verify, "split": split}
        | {file.name: file for file in files}
    )
    store.cached(
        "check",
        settings=settings.model_dump(mode="json"),
        inputs=inputs,
        outputs={"check": output},
        code=("pipeline.stages.check", "pipeline.backends.worker.client", backends.module_name(settings.backend)),
        packages=("torch", "torchvision", "scikit-learn", *backend.packages, *METRIC_PACKAGES),
        build=lambda places, _: documents.write(places["check"], _check(settings, inputs)),
    )


def _check(settings: CheckSettings, inputs: Inputs) -> CheckResult:
    backend, places = backends.load(settings.backend), inputs.paths
    manifest = places["manifest"]
    proved = evidence.read(VerifyResult, places["verify"], inputs, "fused", "split")
    written = documents.read(Manifest, manifest)
    declared.hold(settings, manifest, written, inputs)
    evidence.require(written, manifest, inputs, "fused", "quantized", "verify")
    _hold_preprocessing(manifest, written.preprocessing, proved.preprocessing)
    found = {name: signatures.read(places[form.file_name]) for name, form in written.forms.items()}
    for form, one in found.items():
        declared.hold_signature(places[written.forms[form].file_name], manifest, written, one)
    signature = found[written.shipped]  # the baseline is exported alike
    sources = {name: places[name] for name in ("fused", "quantized") if places[name]}
    everything = splits.open_split(places["split"])
    images = everything.sample("val", settings.check.images) if settings.check.images else everything
    held_against = _references(written, proved.preprocessing, sources, images, signature.takes_pixels)
    declared.hold_outputs(manifest, written, held_against["fused"].outputs)
    forms: dict[str, CheckedForm] = {}
    lost = None
    for form, entry in written.forms.items():
        reference = held_against[form]
        if backend.inspect:
            backend.inspect([places[name] for name in entry.files], entry.facts, reference.spec)
        file = places[entry.file_name]
        census = backend.census(file)
        if form != "branched":
            _hold_census(file, census, reference)
            if backend.stored_weights:
                reference = reference.as_stored_in(file, backend.stored_weights)
        limits = settings.check
        if reference.spec.precision != written.precision:
            limits = limits.model_copy(update={"tolerance": None})  # the user's is for what ships
        gives_probabilities = signature.gives_probabilities
        with client.predictor(settings.backend, file) as predict:
            checked = gates.CheckedFile(settings.backend, limits, file, form, reference, gives_probabilities, predict)
            converter = checked.check_network(proved.float32.branched_error)
            forms[form] = CheckedForm(census, converter, checked.agreement, checked.accuracy)
            try:
                precision = checked.check_precision(held_against["fused"].accuracy)
                forms[form] = replace(forms[form], precision=precision)
            except GateError as error:
                if not settings.may_lose:
                    raise
                lost = str(error)
    count, of = images.size("val"), everything.size("val")
    sample = Sample(count, of, held_against["fused"].accuracy) if count < of else None
    return CheckResult(
        status="lost" if lost else "ok",
        reason=lost,
        subjects=inputs.sha256,
        checked_by=backend.checked_by,
        images=len(held_against[written.shipped].numbers),
        accuracy=FileAccuracy(**asdict(proved.accuracy), file=forms[written.shipped].accuracy, sample=sample),
        forms=forms,
    )


def _references(
    written: Manifest, preprocessing: Preprocessing, sources: dict[str, Path], images: splits.Split, whole_pixels: bool
) -> dict[str, Reference]:
    """What each form is held against, in its precision; and the fused network in any case, for its accuracy."""
    spec = spec_of(written, preprocessing)
    precisions = {"fused": "fp32"} | {name: form.precision for name, form in written.forms.items()}
    made: dict[tuple[Path, str], Reference] = {}
    for form, precision in precisions.items():
        key = sources.get(form, sources["fused"]), precision
        if key not in made:
            made[key] = Reference(key[0], images, replace(spec, precision=precision), whole_pixels)
    judge = made[sources["fused"], precisions["fused"]]  # its logits are those of fused.pt2 in any precision
    made = {key: one if one is judge else replace(one, judge=judge) for key, one in made.items()}
    return {form: made[sources.get(form, sources["fused"]), precision] for form, precision in precisions.items()}


def _hold_preprocessing(manifest: Path, written: Preprocessing, proved: Preprocessing) -> None:
    """The manifest tells the app how to feed the network: as it was fed when it was trained and verified."""
    for field in _SHOWN_FIELDS:
        told, right = getattr(written, field), getattr(proved, field)
        if told != right:
            raise GateError(
                f"{manifest}: `{field}` of the preprocessing is {_short(told)}, but the network was trained "
                f"and verified with {_short(right)}. An app that feeds it so gets wrong answers; export again."
            )


def _hold_census(file: Path, census: dict[str, int], reference: Reference) -> None:
    """The file has every convolution of the program, and of what the program has no more.

    A batch norm that the program has a runtime writes as one, as a depthwise convolution, or not at all, folded; a
    normalization of another kind, or a scale, it may write as a batch norm.
    """
    wanted = programs.count(reference.program)
    more = census["convolution"] - wanted["convolution"]
    norms = census["batch_norm"] + max(more, 0) - programs.count_normalizations(reference.program)
    if more < 0:
        raise GateError(
            f"{file}: holds {census['convolution']} convolutions ({_listed(census, 'conv')}), {-more} fewer than the "
            f"fused network's {wanted['convolution']}. The exporter left a layer out, or computed it another way."
        )
    for surplus, kind, key in ((more - wanted["batch_norm"], "conv", "convolution"), (norms, "batch", "batch_norm")):
        if surplus > 0:
            raise GateError(
                f"{file}: {surplus} {key.replace('_', ' ')}{'s' * (surplus > 1)} too many, of {_listed(census, kind)}; "
                f"the fused network has {wanted[key] or 'none'}. The exporter undid the fold, or was given the "
                "branched network."
            )
    if census["join"] > wanted["join"]:
        raise GateError(
            f"{file}: adds branches at {census['join']} places, but the fused network at {wanted['join']}. A branch "
            "was left unfused, or the exporter undid the fold."
        )
    if census["int8"] != wanted["int8"]:
        raise GateError(
            f"{file}: computes {census['int8']} convolutions and linear layers in int8, but the program it was made of "
            f"{wanted['int8']}. The exporter left the others in float, or lost their scales; export it again, and if "
            "that fails, leave out the exporter's version that manifest.json names."
        )


def _listed(census: dict[str, int], kind: str) -> str:
    """The operations of a kind as the file names them: ``4 Conv, 1 ConvTranspose``."""
    names = [name for name in census if kind in name.lower() and "convert" not in name.lower()]
    own = [name for name in names if name not in ("convolution", "batch_norm")]
    return ", ".join(f"{census[name]} {name}" for name in own or names)


def _short(value: object) -> str:
    text = str(documents.plain(value))
    return text if len(text) <= 60 else f"{text[:57]}..."
