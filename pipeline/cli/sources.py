"""What a user names to be exported or fused: a checkpoint, the factory of a network, or a program of torch.export."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.artifacts import own_code
from pipeline.artifacts.atomic import replacing
from pipeline.artifacts.manifest import ImageSize, height_and_width
from pipeline.cli import discovery
from pipeline.cli.discovery import Checkpoint
from pipeline.errors import InputError, nearest, shown
from pipeline.models import external_checkpoints, file_kinds, networks, program_file, programs
from repnets.checkpoints import layouts
from repnets.networks import MODELS

if TYPE_CHECKING:
    from torch import Tensor, nn

SOURCES = """\
SOURCE is one of
  FILE.pth .pt .ckpt .safetensors   a trained network; recognised, or named with --arch; no code in it runs
  mynets.small:build                your own: build() or build(num_classes=...) in mynets/small.py
  timm:NAME, torchvision:NAME       a network of timm or torchvision
  repvgg_a0                         any of `repnets models`
  FILE.pt2                          {programs}
A network that is named has the weights of --checkpoint FILE; without it, RANDOM ones: to try out, not to ship.
"""
OTHERS_CLASSES = 1000
"""Of a network of timm or torchvision without a checkpoint, unless others are asked for."""

_TORCHVISION = "torchvision:"
_OF_IMAGENET = 224  # pixels
_CHECKPOINTS = (file_kinds.SAFETENSORS, *file_kinds.PICKLES)


@dataclass(frozen=True)
class Source:
    """What is meant.

    Attributes:
        name: what to call it: the file without its suffix, or the factory.
        arch: the network, as config.yaml names it; None where the checkpoint has to tell.
        checkpoint: its weights; None: random ones.
        program: a program of torch.export instead.
    """

    name: str
    arch: str | None
    checkpoint: Path | None
    program: Path | None = None


@dataclass(frozen=True)
class Opened:
    """The network of a source.

    Attributes:
        model: in evaluation mode.
        checkpoint: what its checkpoint tells; None without one.
        example: float32 (N, C, H, W) of zeros, to fold it at.
    """

    model: "nn.Module"
    checkpoint: Checkpoint | None
    example: "Tensor"


def meant(source: str, arch: str | None = None, checkpoint: Path | None = None) -> Source:
    """What a user means by SOURCE, `--arch` and `--checkpoint`.

    Raises:
        InputError: there is no such file or network; it is an ONNX file; the options contradict each other.
    """
    path = Path(source)
    is_file = path.suffix in (*_CHECKPOINTS, ".pt2", ".onnx") or path.is_file()
    if is_file and not path.is_file():
        raise InputError(f"{shown(path)} does not exist. Correct the name of the file.")
    if is_file and checkpoint:
        raise InputError(f"{shown(path)} and --checkpoint {shown(checkpoint)} are two files of weights. Name one.")
    if not is_file and arch:
        raise InputError(f"`{source}` names a network, and so does --arch {arch}. Leave one out.")
    if path.suffix == ".onnx":
        raise InputError(
            f"{shown(path)} is an ONNX file, which is read to be checked and timed, not to be built from: its graph is "
            f"no network of PyTorch. Bring what it was exported from: the weights, {file_kinds.STATE_DICT}, and --arch."
        )
    if path.suffix == ".pt2":
        return Source(path.stem, _known(arch), None, path)
    if is_file:
        return Source(path.stem, _known(arch), path)
    if ":" not in source and source not in MODELS:
        raise InputError(
            f"`{source}` is no file, and no network of repnets{nearest(source, list(MODELS))} A factory of your own is "
            "named as `module.path:function`, networks of others as timm:NAME and torchvision:NAME."
        )
    return Source(source.rpartition(":")[2], _known(source), checkpoint)


def _known(arch: str | None) -> str | None:
    """An `arch` of config.yaml that is there; networks of torchvision are factories in its module `models`."""
    if arch and arch.startswith(_TORCHVISION):
        arch = f"torchvision.models:{arch.removeprefix(_TORCHVISION)}"
    if arch:
        networks.check(arch)
    return arch


def weights(source: Source, folder: Path, classes: int | None = None) -> Checkpoint:
    """The checkpoint of a source; it is written where there is none yet.

    Args:
        source: what is meant.
        folder: for weights that are written: random ones, or those of a program of this pipeline.
        classes: of a network without a checkpoint; default: what its factory has, 1000 of timm and torchvision.

    Raises:
        InputError: as `discovery.checkpoint`; a program of another origin; a factory that must be told its classes.
    """
    if source.checkpoint:
        return discovery.checkpoint(source.checkpoint, source.arch)
    if source.program:
        return _of_program(source, folder)
    count = _classes(source.arch) if classes is None else classes
    path = folder / "random.safetensors"
    _write(path, random_network(source.arch, count).state_dict())
    return Checkpoint(path, source.arch, "RANDOM weights, to try out", count, None)


def opened(source: Source, classes: int | None, size: ImageSize | None) -> Opened:
    """The network of a source, and an input to fold it at.

    Args:
        source: what is meant; a program of any origin.
        classes: see `weights`.
        size: as the user gave it, pixels; default: the checkpoint's or the program's, else 224.

    Raises:
        InputError: as `weights`; the program takes several inputs, something else than images, or another size.
    """
    import torch

    if source.program:
        program = program_file.read(source.program)[0]
        shape = _program_shape(source.program, programs.input_shapes(program), size)
        return Opened(programs.as_module(program), None, torch.zeros(shape))
    model, found = _network(source, classes)
    header = found.header if found else None
    channels = header.preprocessing.channels if header else 3
    sides = height_and_width(size or (header.preprocessing.image_size if header else _OF_IMAGENET))
    return Opened(model, found, torch.zeros(2, channels, *sides))


def _network(source: Source, classes: int | None) -> "tuple[nn.Module, Checkpoint | None]":
    if source.checkpoint is None:
        count = _classes(source.arch) if classes is None else classes
        return random_network(source.arch, count).eval(), None
    found = discovery.checkpoint(source.checkpoint, source.arch)
    count = found.classes if isinstance(found.classes, int) else len(found.classes)
    state, _, _ = external_checkpoints.read(source.checkpoint)
    channels = found.header.preprocessing.channels if found.header else 3
    return external_checkpoints.network(state, found.arch, count, str(source.checkpoint), channels)[0], found


def _program_shape(file: Path, shapes: Sequence[tuple[int | None, ...]], size: ImageSize | None) -> tuple[int, ...]:
    """(N, C, H, W) of the input to fold a program at: its own, where it has one."""
    if len(shapes) > 1:
        raise InputError(
            f"{shown(file)} takes {len(shapes)} inputs, and this command folds networks of one image. Fold it in "
            "Python: repnets.fuse(model, (first, second))."
        )
    own = shapes[0]
    if len(own) != 4:
        raise InputError(f"{shown(file)} takes an input of {len(own)} axes, and an image has 4: N, C, H, W.")
    sides = height_and_width(size or _OF_IMAGENET)
    if size and any(fixed not in (None, side) for fixed, side in zip(own[2:], sides, strict=True)):
        raise InputError(f"{shown(file)} takes {own[2]} x {own[3]} pixels alone. Leave out --size.")
    return tuple(one or other for one, other in zip(own, (2, 3, *sides), strict=True))


def random_network(arch: str, classes: int) -> "nn.Module":
    """A network in training form with random weights, the same each time."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return networks.build(arch, classes)


def _classes(arch: str) -> int:
    """Of a network without a checkpoint; 0 where it tells none apart."""
    base = arch.partition("+")[0]
    if base in MODELS:
        return 0 if MODELS[base].task in ("restoration", "embedding") else 10
    if base.startswith(("timm:", "torchvision.")):
        return OTHERS_CLASSES
    try:
        told = inspect.signature(own_code.load(base)).parameters.get("num_classes")
    except (TypeError, ValueError):
        return 0
    if told is None:
        return 0
    if not isinstance(told.default, int):
        raise InputError(f"`{arch}` must be told how many classes there are: --classes N, or --checkpoint FILE.")
    return told.default


def _of_program(source: Source, folder: Path) -> Checkpoint:
    """The weights of a fused.pt2 of this pipeline, as a checkpoint of the folded network."""
    program, lineage = program_file.read(source.program)
    arch = lineage.get("arch")
    if not isinstance(arch, str) or not layouts.namings(arch):
        raise InputError(
            f"{shown(source.program)} holds a graph, and files are exported and checked from a network's weights and "
            "its code; of a program both are known of repnets' own fused.pt2 alone, of RepVGG and MobileOne. Bring the "
            f"checkpoint that it was made of, {file_kinds.STATE_DICT}, and --arch; or fold it alone: repnets fuse."
        )
    path = folder / "fused.safetensors"
    _write(path, program.state_dict)
    return discovery.checkpoint(path, arch)


def _write(path: Path, state: Mapping[str, "Tensor"]) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as fresh:
        save_file({name: tensor.detach().contiguous().clone() for name, tensor in state.items()}, fresh)
