"""`repnets fuse`: fold a network, prove that nothing changed, and write it."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import backends
from pipeline.artifacts.manifest import ExportSpec, ImageSize, Preprocessing, image_size_of
from pipeline.cli import output_file, sources
from pipeline.cli.discovery import Checkpoint
from pipeline.config.project import Verify
from pipeline.errors import GateError, shown
from pipeline.models import program_file, programs
from pipeline.verification import fold

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

SUFFIXES = (".pt2", ".onnx", ".pth")

HELP = f"""\
Fold a network's branches and batch norms into single convolutions, prove that nothing changed, and write it to OUTPUT.

{sources.SOURCES.format(programs="a program of torch.export, of anyone; nothing in it is executed")}
OUTPUT is one of
  FILE.pt2    a torch.export program; batch and image size stay free where the network lets them
  FILE.onnx   an ONNX file of one image of --size
  FILE.pth    the tensors by name alone

Proved before anything is written, on generated images at up to three sizes: in float64 both are equal to 1e-9; every
weight is the float32 rounding of that fold; in float32 it is about as near to that as the network as it came; fusing
again folds nothing.

Exit code 0: it was proved, and written. 1: a proof failed. 2: a file or an option cannot be used.

examples:
  repnets fuse RepVGG-A0-train.pth a0.pt2
  repnets fuse best.pth best.onnx --arch timm:repvit_m0_9 --size 224
  repnets fuse theirs.pt2 fused.pt2
"""


def fuse(
    source: str,
    output: Path,
    *,
    size: ImageSize | None = None,
    arch: str | None = None,
    checkpoint: Path | None = None,
    classes: int | None = None,
) -> None:
    """Fold a network, prove it, print the report, and write it.

    Args:
        source, arch, checkpoint: see `sources.meant`.
        output: of one of `SUFFIXES`.
        size: of the input, pixels; default: the checkpoint's or the program's, else 224.
        classes: see `sources.weights`.

    Raises:
        InputError: the source cannot be used, or the output not be written.
        GateError: a proof failed; nothing was written.
    """
    import repnets
    from repnets.fusion.capture import capture

    output_file.require(output, SUFFIXES)
    meant = sources.meant(source, arch, checkpoint)
    network = sources.opened(meant, classes, size)
    if network.checkpoint is None and meant.program is None:
        print("WARNING: the weights are RANDOM, since no --checkpoint was given")
    result = repnets.fuse(network.model, network.example)
    print(result.report)
    program, shape = capture(result.module, network.example), tuple(network.example.shape)
    print(_proved(network.model, program, shape))
    with output_file.writing(output) as fresh:
        _write(program, shape, fresh, output.suffix, network.checkpoint)
    print(f"wrote {shown(output)}, {output.stat().st_size / 1e6:.2f} MB")


def _proved(model: "nn.Module", program: "ExportedProgram", shape: tuple[int, ...]) -> str:
    """Hold a fused program against its network, as the stage `verify` does; what was found, in words.

    Raises:
        GateError: a comparison did not hold.
    """
    import torch

    import repnets
    from repnets.float64 import in_float64

    settings = Verify()
    with torch.inference_mode():
        reference = in_float64(model)
        refused = repnets.fuse(reference, torch.zeros(shape, dtype=torch.float64))
        samples = fold.random_inputs(shape, reference, refused.report.free)
        float64, exact = fold.hold_float64(
            reference, refused.module, refused.report, samples, settings.float64_tolerance
        )
        weights = fold.hold_weights(program, refused.module)
        float32 = fold.hold_float32(exact, model, programs.as_module(program), samples, settings)
        again = repnets.fuse(refused.module, torch.zeros(shape, dtype=torch.float64))
    if again.report.regions:
        raise GateError(f"fusing again folded {again.report.regions[0].name} once more. Report this defect of repnets.")
    fused, came = (max(getattr(one, form) for one in float32.relative_error.values()) for form in ("fused", "branched"))
    folded = max(float64.max_relative_error.values())
    return (
        f"proved on {', '.join(samples)}: in float64 the same to {folded:.1e} (allowed {float64.tolerance:.0e}); "
        f"{weights.tensors} tensors rounded to float32, off by {weights.max_relative_error:.1e} at most; in float32 "
        f"{fused:.1e} from float64, the network as it came {came:.1e}"
    )


def _write(
    program: "ExportedProgram", shape: tuple[int, ...], file: Path, suffix: str, found: Checkpoint | None
) -> None:
    import torch

    if suffix == ".pt2":
        program_file.write(program, file, {"arch": found.arch} if found else {})
    elif suffix == ".pth":
        torch.save({name: tensor.detach().clone() for name, tensor in program.state_dict.items()}, file)
    else:
        _write_onnx(program, shape, file, found)


def _write_onnx(program: "ExportedProgram", shape: tuple[int, ...], file: Path, found: Checkpoint | None) -> None:
    """One image at a time, where the program takes any number."""
    number = 1 if programs.input_shapes(program)[0][0] is None else shape[0]
    one = (number, *shape[1:])
    static = programs.static(programs.as_module(program), one)
    names = tuple(fact.name for fact in programs.output_facts(static, bool(found and found.classes)))
    plain = Preprocessing(image_size_of(shape), (0.0,) * shape[1], (1.0,) * shape[1], (), color_order=_order(shape[1]))
    backends.load("onnx").export(static, [file], ExportSpec("fp32", one, plain, output_names=names))


def _order(channels: int) -> str:
    return "gray" if channels == 1 else "RGB"
