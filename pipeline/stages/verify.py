"""Gate: the fused program is the branched network, and nothing else changed.

Proved here, in this order, and written to verify.json:

1. In float64, the fold changes nothing: branched and fused agree to 1e-9 of the largest logit, on random
   input at three sizes, one of them odd, and on real images. (At one, where the network takes one alone.)
2. Every weight in fused.pt2 is the float32 rounding of that float64 fold; the layer is named if not.
3. In float32, the fused program is about as near to the float64 reference as the branched network is, or nearer
   than any deployment could tell. Folding a batch norm of huge gain costs some digits: it was exact by itself.
4. Both predict the same class for every validation image. A flip is allowed only where the two best
   logits tie within rounding, and is listed.
5. Fusing the fused network folds nothing more.

Of a network that came folded there is no branched one: the network as it came stands in its place in all of
these, and the accuracy of `branched` is null.

A gate that fails ends with exit code 1, says where, and leaves no verify.json.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import documents, store
from pipeline.artifacts.digests import Inputs
from pipeline.artifacts.manifest import Preprocessing
from pipeline.artifacts.verify_result import (
    Float32,
    Float64,
    FormErrors,
    Metric,
    ProvedAccuracy,
    Tie,
    VerifyResult,
    Weights,
)
from pipeline.config.project import Verify
from pipeline.data.splits import Split, open_split
from pipeline.errors import GateError
from pipeline.models import checkpoints, program_file, programs, several_inputs
from pipeline.models.accuracy import METRIC_PACKAGES, metric_of, score_of, task_of

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

    from repnets.fusion.report import FuseReport
    from repnets.fusion.sizes import FreeSize

_FLOAT64_IMAGES = 256
_WEIGHT_TOLERANCE = 1e-6


def run(settings: Verify, *, checkpoint: Path, split: Path, fused: Path, output: Path) -> None:
    """Hold a fused program against the checkpoint that it was made from.

    Args:
        settings: tolerances.
        checkpoint: artifacts/<model>/checkpoint.safetensors, the branched network.
        split: artifacts/split.json; its validation images are the real input.
        fused: artifacts/<model>/fused.pt2.
        output: where verify.json goes.

    Raises:
        GateError: a comparison did not hold; names the layer or image, the figures and the tolerance.
        InputError: fused.pt2 is of another checkpoint; the checkpoint was made with another split.
    """
    inputs = Inputs({"checkpoint": checkpoint, "split": split, "fused": fused})
    store.cached(
        "verify",
        settings=settings.model_dump(mode="json"),
        inputs=inputs,
        outputs={"verify": output},
        code=("pipeline.stages.verify", *checkpoints.code_modules(checkpoint)),
        packages=("torch", "torchvision", "scikit-learn", *METRIC_PACKAGES),
        build=lambda places, _: documents.write(places["verify"], _verify(settings, inputs)),
    )


def _verify(settings: Verify, inputs: Inputs) -> VerifyResult:
    import torch

    from repnets.float64 import in_float64
    from repnets.fusion.engine import fuse

    checkpoint, fused = inputs.paths["checkpoint"], inputs.paths["fused"]
    model, header = checkpoints.load_model(checkpoint)
    program, _ = program_file.read(fused)
    preprocessing = header.preprocessing
    shape, example = preprocessing.shape(2), [torch.zeros(one) for one in preprocessing.shapes(2)]
    doubled = tuple(one.double() for one in example)
    images = open_split(inputs.paths["split"], header.data_digest)

    with torch.inference_mode():
        reference = in_float64(model)
        refused = fuse(reference, doubled)
        weights = _hold_weights(program, refused.module)
        reference, model, refolded, file = (
            several_inputs.of_samples(one, preprocessing)
            for one in (reference, model, refused.module, programs.as_module(program))
        )
        real = next(images.batches("val", preprocessing, _FLOAT64_IMAGES))[0]
        own = "samples" if preprocessing.inputs else " x ".join(map(str, preprocessing.size))
        samples = {**_random_inputs(shape, reference, refused.report.free), f"real {own}": real}
        float64, exact = _hold_float64(reference, refolded, refused.report, samples, settings.float64_tolerance)
        float32 = _hold_float32(exact, model, file, samples, settings)
        batches = images.batches("val", preprocessing, settings.batch_size)
        if images.is_of_classifier:
            seen, accuracy, ties = _hold_predictions(model, file, batches, float32.rounding, metric_of(images))
            agreement = 1 - len(ties) / seen
        else:
            seen, accuracy, agreement = _hold_outputs(model, file, batches, float32, images, preprocessing)
            ties = ()
        again = fuse(refused.module, doubled)
    if again.report.regions:
        raise GateError(
            f"fusing the fused network folded {again.report.regions[0].name} once more, so the first fuse was not "
            f"complete. This is a defect of repnets; report it with fuse.json."
        )
    return VerifyResult(
        status="ok",
        subjects=inputs.sha256,
        form=header.form,
        preprocessing=preprocessing,
        float64=float64,
        weights=weights,
        float32=float32,
        images=seen,
        accuracy=replace(accuracy, branched=None) if header.is_folded else accuracy,
        agreement=agreement,
        ties=ties,
        idempotent=True,
    )


def _random_inputs(
    shape: "Sequence[int]", reference: "nn.Module", free: "Mapping[str, FreeSize]"
) -> dict[str, "Tensor"]:
    """Random images at three sizes, of those that the network and its program take; at its own in any case.

    Of several inputs, random samples of the one size.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    _, channels, *own = shape
    if not own:
        return {"random samples": torch.randn(4, channels, generator=generator)}
    inputs = {}
    for size in (own, [side + 1 + side % 2 for side in own], [side + side // 2 for side in own]):
        batch = torch.randn(4, channels, *size, generator=generator)
        taken = all(axis in free and side in free[axis] for axis, side in zip(("height", "width"), size, strict=True))
        shown = " x ".join(map(str, size))
        if size == own or (taken and _runs(reference, batch.double())):
            inputs[f"random {shown}"] = batch
        else:
            print(f"verify: the network does not take {shown} pixels, so it is not compared there", flush=True)
    return inputs


def _runs(model: "nn.Module", batch: "Tensor") -> bool:
    try:
        model(batch)
    except Exception:  # a model of one size fails on another in whatever layer ties it down
        return False
    return True


def _hold_float64(
    reference: "nn.Module", refolded: "nn.Module", report: "FuseReport", inputs: dict[str, "Tensor"], tolerance: float
) -> tuple[Float64, dict[str, "Tensor"]]:
    """What was found, and the logits of the branched network."""
    from repnets.relative_error import relative_error

    errors, exact = {}, {}
    for name, batch in inputs.items():
        exact[name], got = reference(batch.double()), refolded(batch.double())
        errors[name] = relative_error(got, exact[name])
        if not errors[name] <= tolerance:
            worst = max(report.regions, key=lambda region: region.error_float64, default=None)
            where = f"the worst layer by itself is {worst.name} ({worst.error_float64:.1e})" if worst else "no region"
            raise GateError(
                f"float64: branched and fused differ by {errors[name]:.2e} of the largest logit on {name} input, "
                f"tolerance {tolerance:.0e}; {where}. The fold is not exact for this network; report it with fuse.json."
            )
    return Float64(tolerance, errors), exact


def _hold_weights(program: "ExportedProgram", refused: "nn.Module") -> Weights:
    want, got = refused.state_dict(), program.state_dict
    shapes = [{name: tensor.shape for name, tensor in one.items()} for one in (want, got)]
    if odd := sorted(dict(shapes[0].items() ^ shapes[1].items())):
        raise GateError(
            f"weights: fused.pt2 and the fold of its checkpoint differ in {', '.join(odd[:4])}. Rebuild it."
        )
    largest = 0.0
    for name, tensor in want.items():
        exact = tensor.double()
        errors = (got[name].double() - exact).abs() / exact.abs().max().clamp_min(1e-30)
        error = float(errors.max())
        if not error <= _WEIGHT_TOLERANCE:
            at = _index(errors)
            is_, must = float(got[name][at]), float(exact[at])
            layer = name.rpartition(".")[0]
            raise GateError(
                f"weights: {f'layer {layer}' if layer else 'a constant'} of fused.pt2 is not the fold of its "
                f"checkpoint: {name}{list(at)} is {is_:.8g} and must be {must:.8g}, off by {error:.1e} "
                f"of the layer's largest weight, tolerance {_WEIGHT_TOLERANCE:.0e}. Delete fused.pt2 and run again."
            )
        largest = max(largest, error)
    return Weights(_WEIGHT_TOLERANCE, len(want), largest)


def _hold_float32(
    exact: dict[str, "Tensor"], model: "nn.Module", file: "nn.Module", inputs: dict[str, "Tensor"], settings: Verify
) -> Float32:
    from repnets.outputs import rows
    from repnets.relative_error import relative_error

    found, rounding = {}, 0.0
    for name, batch in inputs.items():
        outputs = {"branched": model(batch), "fused": file(batch)}
        found[name] = FormErrors(**{form: relative_error(given, exact[name]) for form, given in outputs.items()})
        rounding = max([rounding, *(_largest(rows(given) - rows(exact[name])) for given in outputs.values())])
        allowed = max(settings.float32_slack * found[name].branched, settings.float32_tolerance)
        if not found[name].fused <= allowed:
            raise GateError(
                f"float32: on {name} input the fused program is {found[name].fused:.2e} from the float64 reference, "
                f"the branched network {found[name].branched:.2e}, allowed {allowed:.2e}. Its weights are right: the "
                f"network is badly conditioned in float32: look for huge BN gains, or raise verify.float32_tolerance."
            )
    return Float32(settings.float32_slack, settings.float32_tolerance, found, rounding)


def _hold_predictions(
    model: "nn.Module", file: "nn.Module", batches: Any, rounding: float, metric: Metric
) -> tuple[int, ProvedAccuracy, tuple[Tie, ...]]:
    """How many images there were, on how many of them each form is right, and those whose class differs.

    Of images without labels, what the branched network says is right.
    """
    correct = {"branched": 0, "fused": 0}
    seen, ties = 0, []
    for batch, labels in batches:
        logits = {"branched": model(batch), "fused": file(batch)}
        classes = {form: values.argmax(1) for form, values in logits.items()}
        labels = classes["branched"] if metric != "top-1" else labels
        for form in correct:
            correct[form] += int((classes[form] == labels).sum())
        for row in (classes["branched"] != classes["fused"]).nonzero().flatten().tolist():
            best = logits["branched"][row].topk(2).values
            tie = Tie(seen + row, *(int(classes[form][row]) for form in correct), float(best[0] - best[1]))
            if not tie.gap <= 2 * rounding:
                raise GateError(
                    f"predictions: validation image {tie.image} is class {tie.branched} branched and "
                    f"{tie.fused} fused, and its two best logits are {tie.gap:.2e} apart, more than rounding "
                    f"({2 * rounding:.2e}) explains. Compare the preprocessing and fuse.json, then rebuild fused.pt2."
                )
            ties.append(tie)
        seen += len(labels)
    if not seen:
        raise GateError("predictions: the validation split holds no image, so nothing was compared.")
    accuracy = ProvedAccuracy(**{form: count / seen for form, count in correct.items()}, metric=metric)
    return seen, accuracy, tuple(ties)


def _hold_outputs(
    model: "nn.Module", file: "nn.Module", batches: Any, float32: Float32, split: Split, preprocessing: Preprocessing
) -> tuple[int, ProvedAccuracy, float]:
    """How many images there were, the scores of both forms, and how far they agree, where no output is a class.

    The numbers of each image are held as those of the first were, by the largest error that the branched network had.
    """
    import torch

    from repnets.outputs import named
    from repnets.relative_error import relative_error

    allowed = max(float32.slack * float32.branched_error, float32.tolerance)
    seen, kept, known = 0, [], []
    for batch, targets in batches:
        want, got = model(batch), file(batch)
        error = relative_error(got, want)
        if not error <= 2 * allowed:  # both round
            raise GateError(
                f"real input: on validation images {seen} to {seen + len(batch) - 1} branched and fused differ by "
                f"{error:.2e} of the largest number of an output, allowed {2 * allowed:.2e}. Compare the preprocessing "
                "and fuse.json, then rebuild fused.pt2."
            )
        kept.append([list(named(one).values()) for one in (got, want)])
        known.append(targets)
        seen += len(batch)
    if not seen:
        raise GateError("real input: the validation split holds no image, so nothing was compared.")
    got, want = ([torch.cat(parts) for parts in zip(*side, strict=True)] for side in zip(*kept, strict=True))
    targets = torch.cat(known)
    task = task_of(split, preprocessing)
    branched, fused = (score_of(split, preprocessing, one, want, targets) for one in (want, got))
    return seen, ProvedAccuracy(branched, fused, metric_of(split)), task.agreement(got, want) if task else fused


def _largest(differences: "Tensor") -> float:
    return float(differences.abs().max())


def _index(tensor: "Tensor") -> tuple[int, ...]:
    import torch

    return tuple(int(i) for i in torch.unravel_index(tensor.argmax(), tensor.shape))
