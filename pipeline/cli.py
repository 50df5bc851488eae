"""The command `repnets`: which networks there are, and checkpoints for other tools."""

import argparse
import json
import os
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import checkpoints, foreign, networks, stage
from pipeline.errors import InputError
from repnets import checkpoints as layouts
from repnets.errors import RepnetsError
from repnets.keys import COUNTER
from repnets.networks import MODELS

if TYPE_CHECKING:
    from torch import Tensor

_LAYOUTS = ("repnets", "official", "official-deploy", "timm", "timm-deploy")
_SUFFIXES = (".safetensors", ".pth", ".pt")
_STATISTICS = ("running_mean", "running_var", COUNTER)

_CONVERT = """\
Write the weights of a RepVGG or MobileOne under the names that another tool knows them by.

CHECKPOINT is one of
  artifacts/<model>/checkpoint.safetensors   what this pipeline trained, with all branches
  artifacts/<model>/fused.pt2                what it folded
  a .safetensors, .pth or .pt                of this project, of the authors (official) or of timm, in the training
                                             or the deploy form; its layout is recognised, and no code in it runs

--layout is one of
  official, timm                             with all branches, to train on
  official-deploy, timm-deploy               each block one convolution; a network with branches is folded first
  repnets                                    this project's names; the form stays as it is

Every tensor must be there and no other, or nothing is written. OUTPUT holds tensors by name and nothing else: the
classes and the preprocessing stay in checkpoint.safetensors.

examples:
  repnets convert artifacts/mine/checkpoint.safetensors mine.pth --layout official
  repnets convert artifacts/mine/fused.pt2 mine-deploy.pth --layout official-deploy
  repnets convert RepVGG-A0-train.pth a0.safetensors --layout repnets
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, or 2 where what was given is at fault."""
    options = _parser().parse_args(argv)
    return stage.answered(lambda: options.act(options), options.debug)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="repnets",
        description="Networks and checkpoints. What is built and measured is asked of snakemake; see README.md.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    models = _command(commands, "models", "list the networks that `arch:` in config.yaml can name", _models)
    models.add_argument("--parameters", action="store_true", help="count them, which takes some seconds")
    convert = _command(commands, "convert", "write a checkpoint for another tool, or read one of it", _convert)
    convert.description = _CONVERT
    convert.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="the file to read")
    convert.add_argument("output", type=Path, metavar="OUTPUT", help=f"the file to write: {', '.join(_SUFFIXES)}")
    convert.add_argument("--layout", choices=_LAYOUTS, required=True, help="the names to write")
    convert.add_argument("--arch", metavar="NAME", help="the network; default: what the file says, or what fits it")
    return parser


def _command(commands: argparse._SubParsersAction, name: str, text: str, act: object) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name, help=text, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    command.set_defaults(act=act)
    return command


def _models(options: argparse.Namespace) -> None:
    rows = [("network", "smallest image", "layouts")]
    for name, spec in MODELS.items():
        size = spec.min_image_size
        rows.append((name, f"{size} x {size}", ", ".join(layouts.namings(name)) or "repnets"))
    if options.parameters:
        counts = [("parameters", "folded"), *(_parameters(name) for name in MODELS)]
        rows = [(*row[:2], *count, row[2]) for row, count in zip(rows, counts, strict=True)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _parameters(arch: str) -> tuple[str, str]:
    forms = ("training", "deploy") if layouts.namings(arch) else ("training",)
    counts = [
        sum(shape.numel() for name, shape in layouts.shapes(arch, form).items() if not name.endswith(_STATISTICS))
        for form in forms
    ]
    return f"{counts[0]:,}", f"{counts[1]:,}" if len(counts) > 1 else "-"


def _convert(options: argparse.Namespace) -> None:
    source, output = options.checkpoint, options.output
    if output.suffix not in _SUFFIXES:
        raise InputError(f"{output} is none of {', '.join(_SUFFIXES)}, so it is unclear how to write it. Rename it.")
    if not output.absolute().parent.is_dir():
        raise InputError(f"there is no folder {output.parent} to write {output.name} into. Make it first.")
    state, arch = _read(source)
    arch = options.arch or arch or _identified(state, source)
    state, form = foreign.as_ours(state, arch, str(source))
    naming, _, suffix = options.layout.partition("-")
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
        state, _, header = foreign.read(path)
        return state, header and header["arch"]
    import torch

    if not path.is_file():
        raise InputError(f"{path} does not exist. Build it first: snakemake {path}")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is no torch.export program, or was cut short. Build it again.")
    extra = {"lineage.json": ""}
    program = torch.export.load(path, extra_files=extra)
    return program.state_dict, json.loads(extra["lineage.json"] or "{}").get("arch")


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

    from repnets.fusion import fuse

    model = networks.build(arch, num_classes=len(state["head.linear.weight"]))
    checkpoints.load_strict(model, state, arch, str(source))
    size = 2 * MODELS[arch].min_image_size
    fused = fuse(model.eval(), torch.zeros(1, 3, size, size)).module
    return layouts.convert(fused.state_dict(), arch)


def _write(output: Path, state: Mapping[str, "Tensor"]) -> None:
    import torch
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    fresh = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        (save_file if output.suffix == ".safetensors" else torch.save)(tensors, fresh)
        os.replace(fresh, output)
    except OSError as error:
        raise InputError(f"{output} cannot be written: {error.strerror}. Name another place.") from error
    finally:
        fresh.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
