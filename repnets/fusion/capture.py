"""Capture a network as a graph, having checked what the user hands in."""

import copy
import math
from itertools import chain

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_leaves

from repnets.errors import RepnetsError
from repnets.fusion.sizes import settle_sizes

_ROOMY = 128  # pixels, at which no feature map of a network of total stride 64 is a single pixel


def capture(model: nn.Module, example_input: Tensor) -> ExportedProgram:
    """Export `model` as an ATen graph of free batch size and, where the model allows, free spatial sizes.

    Args:
        model: In eval mode, on any device; it is not changed.
        example_input: (N, C, *spatial), of the model's floating dtype. One image will do.

    Returns:
        A functional program on the CPU, which shares the parameters of a model that is there. Sizes that its
        `range_constraints` do not name are fixed.

    Raises:
        RepnetsError: A module is in training mode, the example has another rank than the model's convolutions
            take, the model does not run on it, or cannot be exported.
    """
    require_eval(model)
    _require_rank(model, example_input)
    try:
        private = copy.deepcopy(model, _shared(model)).cpu()
    except Exception as error:
        raise RepnetsError(
            f"The model cannot be copied: {error}. It is exported from a copy, so that yours is never "
            "changed; make sure that copy.deepcopy(model) works."
        ) from error
    example = example_input.detach().cpu()
    try:
        with torch.no_grad():
            private(example)
            _make_functional(private, example)
    except Exception as error:
        raise RepnetsError(
            f"The model does not run on the example input, {_describe(example)}: {error}. Give one of the "
            "shape and dtype that the model takes."
        ) from error
    return _export(private, example)


def _shared(model: nn.Module) -> dict[int, nn.Parameter]:
    """For deepcopy: parameters that share the model's memory, so that no second copy of it is held."""
    return {id(one): nn.Parameter(one.detach(), requires_grad=False) for one in model.parameters()}


def require_eval(model: nn.Module) -> None:
    training = next((name for name, module in model.named_modules() if module.training), None)
    if training is not None:
        raise RepnetsError(
            f"The {f'module {training!r}' if training else 'model'} is in training mode, where a batch norm "
            "depends on the other images of its batch and cannot be folded. Call model.eval() first."
        )


def _require_rank(model: nn.Module, example: Tensor) -> None:
    ranks = {nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}
    wanted = sorted({rank for kind, rank in ranks.items() for module in model.modules() if isinstance(module, kind)})
    if example.dim() < 2 or (wanted and example.dim() not in wanted):
        takes = " or ".join(map(str, wanted)) or "at least 2"
        raise RepnetsError(
            f"The example input has {example.dim()} dimensions, {tuple(example.shape)}, and the model takes "
            f"{takes}: batch, channels and the spatial sizes. Give one batch of inputs, such as "
            "torch.zeros(1, 3, 224, 224) for a network of 2d images."
        )


def require_sound_numbers(model: nn.Module) -> None:
    quantized = [name for name, layer in model.named_modules() if ".quantized" in type(layer).__module__]
    quantized += [name for name, tensor in model.named_parameters() if "torchao" in type(tensor.data).__module__]
    if quantized:
        raise RepnetsError(
            f"{quantized[0]} is quantized already, and rounded integers cannot be folded exactly. Fuse the network in "
            "floating point, and quantize what comes out."
        )
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_complex():
            raise RepnetsError(f"{name} holds complex numbers, which no convolution of the engine's has.")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise RepnetsError(
                f"{name} holds NaN or infinite values, which folding would spread over whole kernels. The "
                "training run or the checkpoint is broken; load a sound one."
            )
        if name.rpartition(".")[2] == "running_var" and (tensor < 0).any():
            layer = name.rpartition(".")[0]
            raise RepnetsError(
                f"The batch norm {layer!r} has a negative running variance, {tensor.min():.3g}, and a "
                "variance cannot be negative. The checkpoint is broken, or was loaded into the wrong layer."
            )


def require_stateless(program: ExportedProgram) -> None:
    changed = sorted(program.graph_signature.buffers_to_mutate.values())
    if changed:
        raise RepnetsError(
            f"The model's forward changes its own buffer {changed[0]!r} in eval mode, and a fused network "
            "keeps no state. Make the forward leave its buffers alone when not training."
        )


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"


def _export(model: nn.Module, example: Tensor) -> ExportedProgram:
    """The freest export that the model allows."""
    # the exporter takes a size of 1 for a constant: two images stand for any number of them
    images = example if len(example) > 1 else torch.cat([example, example])
    axes = [axis for axis in range(2, example.dim()) if _runs(model, _enlarged(example[:1], [axis], 2))]
    batch = {0: Dim("batch", min=1)}
    free = {**batch, **dict.fromkeys(axes, Dim.DYNAMIC)}
    scale = -(-_ROOMY // min((images.shape[axis] for axis in axes), default=_ROOMY))
    roomy = [(_enlarged(images, axes, scale), free)] if scale > 1 else []
    attempts = [*roomy, (images, free), (images, batch), (example, {})]
    for inputs, sizes in attempts:
        try:
            program = torch.export.export(model, (inputs,), dynamic_shapes=(sizes,))
        except Exception as error:  # the exporter raises whatever the model's code led it to
            failure = error
            continue
        # an upper bound means that some feature map is 1 pixel at this size and was taken for a constant
        if all(bounds.upper > 2**31 for bounds in program.range_constraints.values()) and not _rounds_sizes(program):
            program = program.run_decompositions({}) if _writes_in_place(program) else program
            if not sizes or settle_sizes(program, model):
                program.example_inputs = ((images if sizes else example,), {})
                return program
    reason = str(failure).strip().partition("\n")[0]
    raise RepnetsError(
        f"torch.export cannot capture the model: {reason}. The usual cause is Python code that branches on "
        "the values of a tensor; write it with torch.where, or decide it before the forward."
    ) from failure


def _make_functional(model: nn.Module, example: Tensor) -> None:
    """Switch off `inplace` where that changes no result: writing calls cost a second, longer trace of the graph."""
    layers = [module for module in model.modules() if getattr(module, "inplace", False) is True]
    x = torch.rand_like(example) if example.is_floating_point() else example
    before = model(x.clone())
    for layer in layers:
        layer.inplace = False
    after = model(x.clone())
    same = all(torch.equal(one, other) for one, other in zip(tree_leaves(before), tree_leaves(after), strict=True))
    if not same:
        for layer in layers:
            layer.inplace = True


def _writes_in_place(program: ExportedProgram) -> bool:
    schemas = [getattr(node.target, "_schema", None) for node in program.graph.nodes]
    return any(schema is not None and schema.is_mutable for schema in schemas)


def _rounds_sizes(program: ExportedProgram) -> bool:
    """Whether the graph rounds a free size up or down, as padding to "same" does: torch 2.14 saves no such program."""
    return any(node.target in (math.ceil, math.floor) for node in program.graph.nodes)


def _runs(model: nn.Module, images: Tensor) -> bool:
    try:
        with torch.no_grad():
            model(images)
    except Exception:  # a model of one size fails on another in whatever layer ties it down
        return False
    return True


def _enlarged(images: Tensor, axes: list[int], factor: int) -> Tensor:
    """The images repeated `factor` times along each of `axes`: what divided a size divides it still."""
    return images.repeat([factor if axis in axes else 1 for axis in range(images.dim())])
