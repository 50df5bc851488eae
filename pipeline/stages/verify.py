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

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import documents, store
from pipeline.artifacts.digests import Inputs
from pipeline.artifacts.manifest import Preprocessing
from pipeline.artifacts.verify_result import Float32, Metric, ProvedAccuracy, Tie, VerifyResult
from pipeline.config.project import Verify
from pipeline.data.splits import Split, open_split
from pipeline.errors import GateError
from pipeline.models import checkpoints, program_file, programs, several_inputs
from pipeline.models.accuracy import METRIC_PACKAGES, metric_of, score_of, task_of
from pipeline.verification import fold

if TYPE_CHECKING:
    from torch import nn

_FLOAT64_IMAGES = 256


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
        weights = fold.hold_weights(program, refused.module)
        reference, model, refolded, file = (
            several_inputs.of_samples(one, preprocessing)
            for one in (reference, model, refused.module, programs.as_module(program))
        )
        real = next(images.batches("val", preprocessing, _FLOAT64_IMAGES))[0]
        own = "samples" if preprocessing.inputs else " x ".join(map(str, preprocessing.size))
        samples = {**fold.random_inputs(shape, reference, refused.report.free), f"real {own}": real}
        float64, exact = fold.hold_float64(reference, refolded, refused.report, samples, settings.float64_tolerance)
        float32 = fold.hold_float32(exact, model, file, samples, settings)
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
