"""What a manifest says of its files, held against what was asked for and what each file declares of itself."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline import backends
from pipeline.artifacts.digests import Inputs
from pipeline.artifacts.export_result import Manifest, TensorFacts
from pipeline.artifacts.manifest import ExportSpec, Preprocessing, image_size_of
from pipeline.backends.signatures import Shape, Signature, Tensor
from pipeline.config.stages import CheckSettings
from pipeline.errors import GateError

_AXES = ("batch", "channels", "height", "width")


def hold(settings: CheckSettings, manifest: Path, written: Manifest, inputs: Inputs) -> None:
    """Check that a manifest is of these files, and of what was asked for.

    Args:
        settings: of the check.
        manifest: path of the manifest, for messages.
        written: its content.
        inputs: of the check, the files by their names.

    Raises:
        GateError: it is of another target, model, backend or precision; it names other files; or a file is another.
    """
    asked = {name: getattr(settings, name) for name in ("target", "model", "backend", "precision")}
    for name, wanted in asked.items():
        if wanted is not None and getattr(written, name) != wanted:
            raise GateError(_other(manifest, name, getattr(written, name), wanted, "the configuration"))
    if written.shipped_form.precision != written.precision:
        other = written.shipped_form.precision
        raise GateError(_other(manifest, "precision", written.precision, other, f"its form {written.shipped}"))
    names = backends.load(settings.backend).file_names(list(written.forms))
    if sorted(written.files) != sorted(names):
        told, wanted = ", ".join(written.files), ", ".join(names)
        raise GateError(_other(manifest, "files", told, wanted, f"the backend {settings.backend} for these forms"))
    for name, facts in written.files.items():
        if name not in inputs.paths:
            raise GateError(f"{manifest} names {name}, but it was not given; pass it with --files.")
        if inputs.sha256[name] != facts.sha256:
            raise GateError(f"{inputs.paths[name]} is not the file that its manifest describes; export it again.")


def hold_signature(file: Path, manifest: Path, written: Manifest, signature: Signature | None) -> None:
    """Check that a manifest describes the input and output as a file itself declares them.

    Args:
        file: the exported file.
        manifest: path of the manifest, for messages.
        written: its content.
        signature: what the file declares; None for one that declares nothing, as an engine.

    Raises:
        GateError: a shape, type or name is another one; or the manifest contradicts itself.
    """
    how = written.preprocessing
    says = [
        *_of_inputs(how, written),
        *(("output batch", one.shape[0], written.input.shape[0], "its input") for one in written.outputs),
    ]
    if classes := how.classes:
        says.append(("classes", len(classes), written.outputs[0].shape[-1], "its output"))
        says.append(("outputs", len(written.outputs), 1, "a classifier"))
    unknown = [(Tensor(()),) * len(side) for side in (written.inputs, written.outputs)]
    told = signature or Signature(unknown[0][0], unknown[1], (), further=unknown[0][1:])
    says.append(("inputs", len(written.inputs), len(told.inputs), file))
    says.append(("outputs", len(written.outputs), len(told.outputs), file))
    ends = [
        *(
            ("input", one, other, one.name if how.inputs else ExportSpec.input_name, _dtype(told))
            for one, other in zip(written.inputs, told.inputs, strict=False)
        ),
        *(
            ("output", one, other, one.name, "float32")
            for one, other in zip(written.outputs, told.outputs, strict=False)
        ),
    ]
    for kind, facts, real, name, dtype in ends:
        says.append((f"{kind} name", facts.name, real.name or name, file))
        says.append((f"{kind} type", facts.dtype, real.dtype or dtype, file))
        says += [(f"{kind} {axis}", *sizes, file) for axis, *sizes in _sizes(written, facts, real.shape)]
    for what, written_there, real, where in says:
        if written_there != real:
            raise GateError(_other(manifest, what, written_there, real, where))


def hold_outputs(manifest: Path, written: Manifest, outputs: Sequence[TensorFacts]) -> None:
    """Check that a manifest describes the outputs of the program, in its order, which not every file declares.

    Args:
        manifest: path of the manifest, for messages.
        written: its content.
        outputs: of the program.

    Raises:
        GateError: a name, shape or type is another one.
    """
    for told, real in zip(written.outputs, outputs, strict=True):
        for what, one, other in (
            ("output name", told.name, real.name),
            ("output shape", told.shape, real.shape),
            ("output type", told.dtype, real.dtype),
        ):
            if one != other:
                raise GateError(_other(manifest, what, one, other, "the program"))


def _of_inputs(how: Preprocessing, written: Manifest) -> list[tuple[str, object, object, str]]:
    """What the inputs are by the preprocessing: image, or several by name and shape."""
    if how.inputs is None:
        return [
            ("image_size", how.image_size, image_size_of(written.input.shape), "its input"),
            ("channels", how.channels, written.input.shape[1], "its input"),
        ]
    batch = written.input.shape[0]
    told = [(one.name, one.shape) for one in written.inputs]
    return [("inputs", told, [(one.name, (batch, *one.shape)) for one in how.inputs], "its preprocessing")]


def _dtype(told: Signature) -> str:
    return "uint8" if told.takes_pixels else "float32"


def _sizes(written: Manifest, facts: TensorFacts, shape: Shape) -> Iterator[tuple[str, int | str, int | str]]:
    """Each axis that a file declares: its name, its size by the manifest and by the file; "any" where it is free."""
    is_taken, is_image = facts in written.inputs, written.preprocessing.inputs is None
    names = _AXES if is_taken and is_image else ("batch", *(f"axis {place}" for place in range(1, len(facts.shape))))
    if shape and len(facts.shape) != len(shape):
        yield "axes", len(facts.shape), len(shape)
        return
    for axis, told, real in zip(names, facts.shape, shape, strict=False):
        if is_taken or real is not None:
            is_free = axis in (written.input.free or {})
            yield axis, "any" if is_free else told, "any" if real is None else real


def _other(manifest: Path, what: str, told: object, real: object, where: object) -> str:
    return (
        f"{manifest}: `{what}` is {told}, but {real} by {where}. An app that goes by the manifest would use the file "
        "wrongly; export it again."
    )
