"""Build the network that an `arch` of config.yaml names.

    repvgg_a0               a network of `repnets.list_models()`
    timm:fastvit_t8         a network of timm (the extra `timm`), in its training form, with random weights
    my.module:factory       the user's own: a callable `factory(num_classes=...)` that returns an nn.Module
    resnet18+dbb            any of these with training branches around its convolutions, by `repnets.expand`

Each takes float32 images (N, C, H, W), C being 3, or 1 of gray ones, or the `inputs` of config.yaml; a classifier gives
logits (N, num_classes).
The user's module is looked up in the folder of the run first, then on Python's path.
"""

import copy
import importlib
import inspect
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import own_code, source_files
from pipeline.artifacts.manifest import Preprocessing
from pipeline.artifacts.samples import InputShape
from pipeline.errors import InputError, nearest
from repnets.errors import RepnetsError
from repnets.expansion import STYLES
from repnets.networks import MODELS

if TYPE_CHECKING:
    from torch import nn

_TIMM = "timm:"
_FUSED = "repnets.deploy"
_EXPANDED = "repnets.expansion.expand"
_CHANNELS = {
    "RGB": "three channels, red, green and blue",
    "BGR": "three channels, blue, green and red",
    "gray": "one channel, gray",
}


def check(arch: str) -> None:
    """Check an `arch` without building it: neither torch nor code of the user is run.

    Raises:
        InputError: no network of that name, timm is not installed, or a module that is not there, is not
            Python, or has no such factory. Whether timm has a network of that name is seen by `build`.
    """
    base, style = _parts(arch)
    if style is not None:
        if style not in STYLES:
            raise InputError(f"`{arch}`: there is no style `{style}` to expand a network in{nearest(style, STYLES)}")
        check(base)
    elif arch.startswith(_TIMM):
        if source_files.find("timm") is None:
            raise InputError(
                f'`{arch}` is a network of timm, which is not installed. Install it with `pip install "repnets[timm]"`.'
            )
    elif ":" in arch:
        own_code.require(arch)
    elif arch not in MODELS:
        raise InputError(f"there is no network `{arch}`{nearest(arch, list(MODELS))}")


def task_of(arch: str) -> str | None:
    """What a network is for, by its name; None of the user's own, which may be anything."""
    base, _ = _parts(arch)
    return MODELS[base].task if base in MODELS else "classification" if base.startswith(_TIMM) else None


def min_image_size(arch: str) -> int | None:
    """Least height and width of a network's input, pixels; None if only `require_runs` can find out."""
    base, _ = _parts(arch)
    return MODELS[base].min_image_size if base in MODELS else None


def size_step(arch: str) -> int:
    """What height and width of a network's input are multiples of, pixels; 1 where it is not known."""
    base, _ = _parts(arch)
    return MODELS[base].size_step if base in MODELS else 1


def code_modules(arch: str, folded: bool = False) -> tuple[str, ...]:
    """The modules whose code makes the network, or its fused form, for `store.code_digest`.

    InputError as for `check`.
    """
    check(arch)
    if folded:
        return (*code_modules(arch), _FUSED)
    base, style = _parts(arch)
    if style is not None:
        return (*code_modules(base), _EXPANDED)
    if arch.startswith(_TIMM):
        return ("timm",)
    return (arch.partition(":")[0] if ":" in arch else f"repnets.networks.{MODELS[arch].family}",)


def build(arch: str, num_classes: int, folded: bool = False, channels: int = 3) -> "nn.Module":
    """A network in training form with random weights, in training mode, on the CPU; or its fused form, to evaluate.

    A factory of the user's is given `num_classes`, unless that is 0, for networks without classes; and `in_channels`,
    or `in_chans`, where it has that argument and they are not three.

    What makes fused forms is imported by name, like a family of networks: the fuse engine's code counts, through
    `code_modules`, for the checkpoints that need it, and for no training.

    Raises:
        InputError: as for `check`; timm has no network of that name; the user's module cannot be imported,
            or its factory failed or gives no nn.Module.
    """
    check(arch)
    if folded:
        return importlib.import_module(_FUSED).fused_network(arch, num_classes, channels)
    base, style = _parts(arch)
    if style is not None:
        plain = build(base, num_classes, channels=channels)
        return own_code.made(arch, lambda: importlib.import_module(_EXPANDED).expand(plain, style, keep_function=False))
    if arch.startswith(_TIMM):
        return _build_timm(arch, num_classes, channels)
    if ":" in arch:
        return _build_own(arch, num_classes, channels)
    from repnets.networks import create_model

    return create_model(arch, num_classes, channels)


def in_order(model: "nn.Module", arch: str, inputs: Sequence[InputShape]) -> tuple[InputShape, ...]:
    """Several inputs in the order of a network's forward.

    Raises:
        InputError: they are not the parameters of its forward, or some of those can be given by name alone.
    """
    parameters = inspect.signature(model.forward).parameters
    shapes = {one.name: one for one in inputs}
    if any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in parameters.values()):
        return tuple(inputs)  # forward(*inputs) names none
    takes = [name for name, one in parameters.items() if one.default is inspect.Parameter.empty]
    ordered = [name for name in parameters if name in shapes]
    by_name = [name for name in ordered if parameters[name].kind is inspect.Parameter.KEYWORD_ONLY]
    if by_name:
        raise InputError(
            f"`{arch}`: its forward takes `{by_name[0]}` by name alone, and exported files take inputs in order. Take "
            "away the `*` before it in its forward."
        )
    if len(ordered) < len(shapes) or not set(takes) <= set(ordered) or ordered != list(parameters)[: len(ordered)]:
        raise InputError(
            f"`{arch}` takes {' and '.join(takes)}, the parameters of its forward, and `inputs` in config.yaml names "
            f"{' and '.join(shapes)}. Name these, each with its shape."
        )
    return tuple(shapes[name] for name in ordered)


def require_runs(model: "nn.Module", arch: str, preprocessing: Preprocessing) -> None:
    """Hold a network to what this pipeline asks of one, on two black images and in the mode that it is in.

    A copy is run, so that neither its statistics nor the random numbers drawn after it change.

    Raises:
        InputError: it does not run at that size, or what it gives are no logits of that many classes.
    """
    import torch

    inputs, num_classes = [torch.zeros(shape) for shape in preprocessing.shapes(2)], len(preprocessing.classes)
    height, width = preprocessing.size
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            given = copy.deepcopy(model)(*inputs)
        except Exception as error:
            if preprocessing.inputs is not None:
                shapes = ", ".join(f"{one.name} {list(one.shape)}" for one in preprocessing.inputs)
                raise InputError(
                    f"`{arch}` does not run on two samples of its inputs, {shapes}: {own_code.words(error)}. Correct "
                    "the shapes under `inputs`, which are without the batch."
                ) from error
            _require_one_input(model, arch)
            raise InputError(
                f"`{arch}` does not run on images of {height} x {width} pixels: {own_code.words(error)}. It is given "
                f"{_CHANNELS[preprocessing.color_order]}. If the size is too small for it, or not the one that it "
                "takes, set `image_size` (in pixels) under its name in `models:`, or in the target. If it takes other "
                "channels, set `color_order` under its name."
            ) from error
    if not num_classes:
        _require_tensors(given, arch)
        return
    shape = tuple(given.shape) if isinstance(given, torch.Tensor) else None
    if shape != (2, num_classes):
        mode = "training" if model.training else "evaluation"
        raise InputError(
            f"`{arch}` gives {f'a tensor {shape}' if shape else f'a {type(given).__name__}'} for two images in "
            f"{mode} mode, and must give logits, a tensor (2, {num_classes}): one row an image, one column a "
            "class. Make its forward return them alone."
        )


def _require_one_input(model: "nn.Module", arch: str) -> None:
    """Say of a network of several inputs, for which no shapes are given, how to give them."""
    parameters = inspect.signature(model.forward).parameters.values()
    names = [one.name for one in parameters if one.default is one.empty and one.kind is not one.VAR_POSITIONAL]
    if len(names) > 1:
        shapes = ", ".join(f"{name}: [3, 64, 64]" for name in names)
        raise InputError(
            f"`{arch}` takes several inputs, {' and '.join(names)}, and is given one image. Say the shape of each, "
            f"without the batch, under `data` or its name in `models:`, for example `inputs: {{{shapes}}}`."
        )


def _require_tensors(given: Any, arch: str) -> None:
    """What a network without classes gives: tensors alone, each with a row for each of two images."""
    from repnets.outputs import named

    try:
        found = named(given)
    except RepnetsError as error:
        raise InputError(f"`{arch}`: {error}. Make its forward return tensors, in tuples, lists or dicts.") from None
    for name, tensor in found.items():
        what = f"its output `{name}`" if name else "its output"
        if not tensor.is_floating_point():
            raise InputError(
                f"`{arch}`: {what} is of the type {str(tensor.dtype).removeprefix('torch.')}, and must be of floating "
                "point: leave out what makes whole numbers of scores, such as an argmax, and do it after the file."
            )
        if tensor.dim() == 0 or len(tensor) != 2:
            raise InputError(
                f"`{arch}`: {what} has the shape {tuple(tensor.shape)} for two images, and the first axis must be the "
                "batch. Leave out of its forward what does not depend on the image, or what mixes images, such as the "
                "suppression of boxes (NMS): that is done after the file."
            )


def _parts(arch: str) -> tuple[str, str | None]:
    """The plain network of an `arch`, and the style in which it is expanded."""
    base, plus, style = arch.rpartition("+")
    return (base, style) if plus else (arch, None)


def _build_timm(arch: str, num_classes: int, channels: int) -> "nn.Module":
    import timm

    name = arch.removeprefix(_TIMM)
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=1)
        hint = f"; did you mean `{_TIMM}{near[0]}`?" if near else "."
        raise InputError(f"timm {timm.__version__} has no network `{name}`{hint} timm.list_models() gives all names.")
    return own_code.made(arch, lambda: timm.create_model(name, False, num_classes=num_classes, in_chans=channels))


def _build_own(arch: str, num_classes: int, channels: int) -> "nn.Module":
    from torch import nn

    name = arch.partition(":")[2]
    factory = own_code.load(arch)
    if not callable(factory):
        raise InputError(
            f"`{arch}` is of type {type(factory).__name__} and cannot be called. Name the function, or the class, that "
            "returns the network."
        )
    given = {"num_classes": num_classes} if num_classes else {}
    try:
        taken = inspect.signature(factory)
        if channels != 3:
            given |= {name: channels for name in ("in_channels", "in_chans") if name in taken.parameters}
        taken.bind(**given)
    except TypeError as error:
        raise InputError(
            f"`{arch}` cannot be called as `{name}({f'num_classes={num_classes}' if num_classes else ''})`: {error}. "
            + (
                "Give it the argument `num_classes`, and every other one a default."
                if num_classes
                else "Give each of its arguments a default; or, if it is a classifier, set `data.classes`."
            )
        ) from None
    except ValueError:  # it does not tell its arguments; calling it will
        pass
    model = own_code.made(arch, lambda: factory(**given))
    if not isinstance(model, nn.Module):
        raise InputError(f"`{arch}` returned a {type(model).__name__}, and must return the network, an nn.Module.")
    return model.train()
