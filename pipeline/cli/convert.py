"""`repnets convert`: checkpoints for other tools, and of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli import output_file
from pipeline.errors import InputError
from pipeline.models import checkpoints, external_checkpoints, networks, program_file
from repnets.checkpoints import layouts
from repnets.errors import RepnetsError
from repnets.networks import MODELS

if TYPE_CHECKING:
    from torch import Tensor

HELP = """\
Write the weights of a RepVGG or MobileOne under the names that another tool knows them by.

CHECKPOINT is one of
  artifacts/<model>/checkpoint.safetensors   trained by this pipeline, with all branches
  artifacts/<model>/fused.pt2                the fused network
  a .safetensors, .pth, .pt or .ckpt         of this project, of the authors (official) or of timm, in the training
                                             or the deploy form; its layout is recognised, and no code in it runs

--layout is one of
  official, timm                             with all branches, to continue training
  official-deploy, timm-deploy               each block one convolution; a network with branches is folded first
  repnets                                    this project's names; the form is not changed

Nothing is written if a tensor is missing or surplus. OUTPUT contains only tensors by name: the classes and the
preprocessing stay in checkpoint.safetensors.

examples:
  repnets convert artifacts/mine/checkpoint.safetensors mine.pth --layout official
  repnets convert artifacts/mine/fused.pt2 mine-deploy.pth --layout official-deploy
  repnets convert RepVGG-A0-train.pth a0.safetensors --layout repnets
"""

LAYOUTS = ("repnets", "official", "official-deploy", "timm", "timm-deploy")
SUFFIXES = (".safetensors", ".pth", ".pt")


def convert(source: Path, output: Path, layout: str, arch: str | None = None) -> None:
    """Write the weights of a RepVGG or MobileOne under the names that another tool knows them by.

    Args:
        source: a checkpoint of this pipeline, a fused.pt2, or a file of the authors or of timm.
        output: where they go, of one of `SUFFIXES`.
        layout: one of `LAYOUTS`.
        arch: the network; default: what the file says, or what fits it.

    Raises:
        InputError: the source cannot be read, does not fit the network or the layout, or the output cannot be written.
    """
    output_file.require(output, SUFFIXES)
    state, named = _read(source)
    arch = arch or named or _identified(state, source)
    state, form = external_checkpoints.as_ours(state, arch, str(source))
    naming, _, suffix = layout.partition("-")
    wanted = form if naming == "repnets" else suffix or "training"
    if (form, wanted) == ("deploy", "training"):
        raise InputError(
            f"{source} was folded already, and one convolution does not tell which branches it was made of. Choose "
            f"`--layout {naming}-deploy`, or give the checkpoint of the training."
        )
    if (form, wanted) == ("training", "deploy"):
        state = _folded(state, arch, source)
    _write(output, layouts.convert(state, arch, naming))
    print(f"{output}: {arch}, {naming} layout, {wanted} form")


def _read(path: Path) -> tuple[Mapping[str, "Tensor"], str | None]:
    """Tensors by name, and the network where the file says which it is."""
    if path.suffix != ".pt2":
        state, _, header = external_checkpoints.read(path)
        return state, header and header.arch

    program, lineage = program_file.read(path)
    return program.state_dict, lineage.get("arch")


def _identified(state: Mapping[str, "Tensor"], source: Path) -> str:
    try:
        arch = layouts.identify(state)
        if arch is None:
            raise RepnetsError(
                f"these are {layouts.recognise(state)} weights, but of no network that repnets has. Name the nearest "
                "with `--arch`, and be told what differs."
            )
    except RepnetsError as error:
        raise InputError(f"{source}: {error}") from None
    return arch


def _folded(state: Mapping[str, "Tensor"], arch: str, source: Path) -> dict[str, "Tensor"]:
    import torch

    from repnets.fusion.engine import fuse

    model = networks.build(arch, num_classes=len(state["head.linear.weight"]))
    checkpoints.load_strict(model, state, arch, str(source))
    size = 2 * MODELS[arch].min_image_size
    fused = fuse(model.eval(), torch.zeros(1, 3, size, size)).module
    return layouts.convert(fused.state_dict(), arch)


def _write(output: Path, state: Mapping[str, "Tensor"]) -> None:
    import torch
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    with output_file.writing(output) as fresh:
        (save_file if output.suffix == ".safetensors" else torch.save)(tensors, fresh)
