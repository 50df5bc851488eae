"""What a folder of pictures and a checkpoint tell of themselves, for the config.yaml of a new project."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from pipeline.artifacts.manifest import ColorOrder, ImageSize, image_size_of
from pipeline.data import folder_layout, image_file, image_folder
from pipeline.errors import InputError, shown
from pipeline.models import external_checkpoints, networks
from repnets.checkpoints import layouts
from repnets.checkpoints.prefixes import without_prefix
from repnets.checkpoints.state_dict_errors import misnamed, misshapen
from repnets.errors import RepnetsError

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.artifacts.checkpoint_header import CheckpointHeader

_LOOKED_AT = 1000  # images of a folder whose headers are read, evenly spread
_NAMED = 10  # broken images that a message names
_SMALLEST, _LARGEST, _STEP = 32, 224, 32  # sides, pixels


@dataclass(frozen=True)
class Pictures:
    """What a folder of pictures tells.

    Attributes:
        root: the folder.
        classes: names of its class folders, sorted; none where the pictures lie in no class folders.
        count: of the pictures.
        image_size: that of all, if they are of one size; else the median of the shorter sides, as a multiple of 32. At
            least 32 and at most 224 pixels.
        color_order: gray if all are.
        notes: what else the user has to know, a sentence each.
        broken: messages about pictures that cannot be read.
    """

    root: Path
    classes: tuple[str, ...]
    count: int
    image_size: ImageSize
    color_order: ColorOrder
    notes: tuple[str, ...]
    broken: tuple[str, ...]


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint tells.

    Attributes:
        path: of the file.
        arch: the network.
        layout: in words, and the form.
        classes: how many, or their names where the file tells them; 0 of a network without classes.
        header: of a file that this pipeline wrote.
    """

    path: Path
    arch: str
    layout: str
    classes: int | tuple[str, ...]
    header: "CheckpointHeader | None"


def pictures(root: Path) -> Pictures:
    """Look at a folder of pictures, in class folders or without classes.

    Raises:
        InputError: as `image_folder.scan` and `image_folder.pictures`; no picture of it can be read.
    """
    try:
        has_classes = any(folder_layout.has_images(root / name) for name in folder_layout.folders(root))
        tree = image_folder.scan(root) if has_classes else image_folder.pictures(root)
    except InputError as error:
        raise InputError(f"--data: {str(error).removeprefix('data.root: ')}") from None
    headers, broken = [], []
    for name in tree.images[:: math.ceil(len(tree.images) / _LOOKED_AT)]:
        try:
            headers.append(image_file.header(root / name))
        except InputError as error:
            broken.append(str(error))
    if not headers:
        raise InputError(f"--data: no picture in {shown(root)} can be read. {broken[0]}")
    return Pictures(
        root=root,
        classes=tree.classes,
        count=len(tree.images),
        image_size=_image_size([(one.height, one.width) for one in headers]),
        color_order="gray" if all(one.is_gray for one in headers) else "RGB",
        notes=tree.notes,
        broken=(*broken[:_NAMED], *([f"And {len(broken) - _NAMED} more."] if len(broken) > _NAMED else [])),
    )


def _image_size(sizes: Sequence[tuple[int, int]]) -> ImageSize:
    if len(set(sizes)) == 1 and min(sizes[0]) >= _SMALLEST and max(sizes[0]) <= _LARGEST:
        return image_size_of(sizes[0])
    side = int(median(min(size) for size in sizes)) // _STEP * _STEP
    return min(max(side, _SMALLEST), _LARGEST)


def checkpoint(path: Path, arch: str | None) -> Checkpoint:
    """Find out which network a checkpoint is of, and how many classes it tells apart. No code in it is run.

    Args:
        path: of a .safetensors, .pth, .pt or .ckpt.
        arch: the network, as config.yaml names it; None where the file tells it.

    Raises:
        InputError: it cannot be read, its network is not known and `arch` is None, or it is of another network.
    """
    state, _, header = external_checkpoints.read(path)
    if header is not None:
        if arch not in (None, header.arch):
            raise InputError(f"{shown(path)} holds a `{header.arch}`, and no `{arch}`. Leave out --arch.")
        names = header.preprocessing.classes
        numbered = names == tuple(map(str, range(len(names))))
        layout = _in_words(layouts.Layout("repnets", header.form))
        return Checkpoint(path, header.arch, layout, len(names) if numbered else names, header)
    arch = arch or _identified(state, path)
    networks.check(arch)
    if not layouts.namings(arch):
        return Checkpoint(path, arch, "training form", _count_by_building(state, arch, path), None)
    ours, _ = external_checkpoints.as_ours(state, arch, shown(path))
    return Checkpoint(path, arch, _in_words(layouts.recognise(state)), len(ours["head.linear.weight"]), None)


def _in_words(layout: layouts.Layout) -> str:
    return f"{layout.naming} layout, {layout.form} form"


def _identified(state: Mapping[str, "Tensor"], path: Path) -> str:
    try:
        arch = layouts.identify(state)
        reason = "" if arch else f"These are {layouts.recognise(state)} weights, but of no network that repnets has."
    except RepnetsError as error:
        arch, reason = None, str(error)
    if arch is None:
        raise InputError(
            f"{shown(path)}: {reason} Name its network with --arch: one of `repnets models`, `timm:NAME`, or "
            "`module.path:factory` of your own."
        )
    return arch


def _count_by_building(state: Mapping[str, "Tensor"], arch: str, path: Path) -> int:
    """The number of classes with which a network has the shapes of a checkpoint; 0 for one that takes no such number.

    The weight of the last layer has a row a class, but a .safetensors file does not keep the order of the layers, so
    each number that can be meant is tried.
    """
    weights = [tensor for name, tensor in state.items() if name.endswith("weight") and tensor.dim() >= 2]
    linear = [tensor for tensor in weights if tensor.dim() == 2]
    counts = [*dict.fromkeys(len(tensor) for tensor in reversed(linear or weights))]
    problems = []
    for count in counts if networks.task_of(arch) == "classification" else [*counts, 0]:
        try:
            wanted = networks.build(arch, count).state_dict()
        except InputError as error:  # such as of a factory without `num_classes`, which takes 0 alone
            problems.append(str(error))
            continue
        found = without_prefix(state, wanted)
        shapes = {name: tensor.shape for name, tensor in wanted.items()}
        problem = misnamed(found, wanted) or misshapen(found, shapes, arch)
        if problem is None:
            return count
        problems.append(f"{problem}. Correct --arch.")
    problem = problems[0] if problems else "no tensor in it is the weight of a layer. Name another file."
    raise InputError(f"{shown(path)} does not hold the weights of `{arch}`: {problem}")
