"""Capture a network as a graph, having checked what the user hands in."""

import copy
import inspect
import os
import re
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from functools import lru_cache
from io import StringIO
from itertools import chain
from pathlib import Path

import sympy
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule
from torch.nn.utils.parametrize import ParametrizationList
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils._sympy.functions import CeilToInt, FloorToInt, RoundToInt, TruncToInt

from repnets.errors import RepnetsError
from repnets.fusion.arguments import Example, tensors_of, unwrapped, without_compiling
from repnets.fusion.calls import Call, Recorder, are_large, calls_at, quietly, same_way
from repnets.fusion.inplace import without_overwriting, write_elsewhere
from repnets.fusion.sizes import free_sizes, graph_module, has_upper_limit, settle_sizes, symbolic_axes
from repnets.fusion.trial import Trial, difference, random_input, run, tolerance

_ROUNDINGS = {CeilToInt, FloorToInt, TruncToInt, RoundToInt}
_MOST_PARTS = 300  # of an expression; those of networks that pad by constants have 20
_CONTAINERS = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict, ParametrizationList)
_ROOMY = 128  # pixels, at which no feature map of a network of total stride 64 is a single pixel


def capture(model: nn.Module, example_input: Example) -> ExportedProgram:
    """Export `model` as an ATen graph of free batch size and, where the model allows, free spatial sizes.

    Args:
        model: In eval mode, on any device; it is not changed.
        example_input: (N, C, *spatial), of the model's floating dtype; it is not changed. One image will do. A model
            of several inputs takes a tuple of them, and of its sizes the batch alone is free.

    Returns:
        A functional program on the CPU, which shares the parameters of a model that is there. It takes the example.
        Sizes that `repnets.fusion.sizes.free_sizes` does not name are fixed.

    Raises:
        RepnetsError: A module is in training mode, the example has another rank than the model's convolutions
            take, the model does not run on it, gives something else at its second call, or cannot be exported.
    """
    return export(*on_cpu(model, example_input))


def on_cpu(model: nn.Module, example_input: Example) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """What `capture` exports: a copy of a model, and of its example inputs, having checked that one runs on the other.

    The copy shares the parameters of a model that is on the CPU.
    """
    model = unwrapped(model)
    require_eval(model)
    inputs = tensors_of(example_input)
    try:
        private = without_compiling(copy.deepcopy(model, _shared(model))).cpu()
    except Exception as error:
        raise RepnetsError(
            f"The model cannot be copied: {error}. It is exported from a copy, so that yours is never "
            "changed; make sure that copy.deepcopy(model) works."
        ) from error
    examples = tuple(one.detach().cpu().clone() for one in inputs)
    if len(examples) == 1:
        _require_rank(model, examples[0])
    try:
        with torch.no_grad():
            first, second = (_tensors(run(private, examples)) for _ in range(2))
    except Exception as error:
        raise RepnetsError(
            f"The model does not run on the example input, {' and '.join(map(_describe, examples))}: {error}. Give one "
            "of the shape and dtype that the model takes; of several inputs, a tuple."
        ) from error
    if difference(second, first) > tolerance(private, examples, first):
        raise RepnetsError(
            "The model gives something else when it is called a second time with the same input: its forward keeps a "
            "value from call to call, such as a counter or the last feature map, or draws random numbers that "
            "torch.manual_seed does not set. A fused network keeps no state. Make the forward depend on its inputs "
            "alone when the model is not training."
        )
    return private, examples


def _tensors(given: object) -> list[Tensor]:
    return [one for one in tree_leaves(given) if isinstance(one, Tensor)]


def export(private: nn.Module, examples: Sequence[Tensor]) -> ExportedProgram:
    """The freest program of a model that takes its example, as of `on_cpu`."""
    tried = [random_input(one, one.shape) for one in examples]
    with torch.no_grad(), without_overwriting(private, tried):
        return _freest(private, examples[0]) if len(examples) == 1 else _of_several(private, examples)


def _shared(model: nn.Module) -> dict[int, Tensor]:
    """For deepcopy: parameters that share the model's memory, so that no second copy of it is held.

    What a layer keeps of what it computed from them, as `torch.nn.utils.weight_norm` does, deepcopy refuses by itself.
    """
    parameters = {id(one): nn.Parameter(one.detach(), requires_grad=False) for one in model.parameters()}
    kept = (one for module in model.modules() for one in vars(module).values())
    return parameters | {id(one): one.detach() for one in kept if isinstance(one, Tensor) and not one.is_leaf}


def require_eval(model: nn.Module) -> None:
    training = [name for name, module in model.named_modules() if module.training and not _has_no_mode(module)]
    if training:
        raise RepnetsError(
            f"The {'model' if model.training else f'module {training[0]!r}'} is in training mode, where a batch norm "
            "depends on the other images of its batch and cannot be folded. Call model.eval() first."
        )


def _has_no_mode(module: nn.Module) -> bool:
    """Whether a module computes the same in both modes, whatever its flag says: what is in it has flags of its own.

    Tracing makes such containers, and gives them the flag of training.
    """
    kind = type(module)
    return isinstance(module, GraphModule) or kind in _CONTAINERS or kind.__module__.startswith("torch.export.")


def _require_rank(model: nn.Module, example: Tensor) -> None:
    ranks = {nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}
    wanted = sorted({rank for kind, rank in ranks.items() for module in model.modules() if isinstance(module, kind)})
    # more dimensions than those of its convolutions can be what a network takes: one of 1d convolutions over the rows
    # of an image, say
    if example.dim() < min(wanted, default=2):
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


class _UselessSize(Exception):
    """A free size of which nothing comes, so that the export is ended."""


class _StopAtUselessSizes(TorchFunctionMode):
    """Ends an export where a call takes a size that was rounded, or one that is too long an expression of the image's.

    Torch 2.14 saves no program with a rounded size. Padding to "same" makes expressions three times as long at each
    layer with a stride, and each takes three times as long to trace as the one before.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.SymInt) and _is_useless(leaf.node._expr):
                raise _UselessSize(f"{str(leaf)[:100]} is rounded or too long")
        return function(*args, **(kwargs or {}))


@lru_cache(maxsize=1024)
def _is_useless(size: sympy.Expr) -> bool:
    parts = [type(part) for part in sympy.preorder_traversal(size)]
    return len(parts) > _MOST_PARTS or not _ROUNDINGS.isdisjoint(parts)


def _freest(model: nn.Module, example: Tensor) -> ExportedProgram:
    """The export of a model of one input with as many free sizes as it allows, and the example among them."""
    way = calls_at(model, example.shape, example) or []

    def calls(shape: Sequence[int]) -> list[Call] | None:
        return calls_at(model, shape, example, dry=bool(way) and are_large(way, shape))

    trial = Trial(model, example, way)
    attempts = deque(_attempts(calls, way, tuple(example.shape)))
    while attempts:
        shape, axes = attempts.popleft()
        try:
            if axes:
                sizes = (dict.fromkeys(sorted(axes), Dim.AUTO),)
                program = _exported(model, [torch.empty(shape, dtype=example.dtype)], sizes)
            else:
                program = _exported(model, [example])
        except Exception as error:  # the exporter raises whatever the model's code led it to
            if not attempts:
                raise _not_captured(error) from error
            continue
        if not axes:
            return program
        known, fits = set(free_sizes(program)), _differing(shape, example.shape)
        if symbolic_axes(program) == known and fits <= known and known:
            if settle_sizes(program, trial):
                return program
        # an upper limit means that some feature map is 1 pixel at this size and was taken for a constant
        elif has_upper_limit(program) and same_way(way, calls(roomy := _roomy(shape, axes))) and roomy != shape:
            attempts.appendleft((roomy, axes))
        elif known and known != axes:
            attempts.appendleft((_replaced(shape, example.shape, fits - known), known))
    raise AssertionError("an export of fixed sizes is the last attempt, and returns or raises")


_CallsAt = Callable[[Sequence[int]], list[Call] | None]


def _attempts(calls: _CallsAt, way: Sequence[Call], own: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], set[int]]]:
    """Shapes to export at, and the axes to leave free there, the freest first.

    Args:
        calls: Of the model at a shape.
        way: Its calls at the example.
        own: The example's shape.
    """
    doubled = {axis: calls(_enlarged(own, {axis}, 2)) for axis in range(2, len(own))}
    axes = {axis for axis in doubled if doubled[axis] or calls(_enlarged(own, {axis}, 3))}
    single = any(_has_single_pixels(way, doubled[axis]) for axis in axes if same_way(way, doubled[axis]))
    shape = _without_single_pixels(calls, way, own, axes) if single else own
    # the exporter takes a size of 1 for a constant: two images stand for any number of them
    several = max(2, own[0])
    if several == own[0] or same_way(way, calls((several, *own[1:]))):
        yield (several, *shape[1:]), {0, *axes}
        if axes:
            yield (several, *own[1:]), {0}
    elif axes:
        yield shape, axes
    yield own, set()


def _without_single_pixels(
    calls: _CallsAt, way: Sequence[Call], own: tuple[int, ...], axes: set[int]
) -> tuple[int, ...]:
    """The next larger shape at which no feature map is one pixel that would be more in a larger image.

    It is left as it is where the network's own code would go another way there.
    """
    factor, here = 2, calls(_enlarged(own, axes, 2))
    while factor * min(own[axis] for axis in axes) <= 2 * _ROOMY:
        larger = calls(_enlarged(own, axes, 2 * factor))
        if not (same_way(here, way) and same_way(larger, way)):
            break
        if not _has_single_pixels(here, larger):
            return _enlarged(own, axes, factor)
        factor, here = 2 * factor, larger
    return own


def _has_single_pixels(calls: Sequence[Call], larger: Sequence[Call]) -> bool:
    """Whether a size of 1 in some feature map is more in that of a larger image."""
    maps = [
        maps for pair in zip(calls, larger, strict=True) for maps in zip(*(call.shapes for call in pair), strict=False)
    ]
    return any(size <= 1 < other for pair in maps for size, other in zip(*pair, strict=False))


def _roomy(shape: tuple[int, ...], axes: set[int]) -> tuple[int, ...]:
    spatial = axes - {0}
    return _enlarged(shape, spatial, -(-_ROOMY // min((shape[axis] for axis in spatial), default=_ROOMY)))


def _differing(some: Sequence[int], others: Sequence[int]) -> set[int]:
    return {axis for axis, (one, other) in enumerate(zip(some, others, strict=True)) if one != other}


def _replaced(shape: Sequence[int], other: Sequence[int], axes: set[int]) -> tuple[int, ...]:
    return tuple(other[axis] if axis in axes else size for axis, size in enumerate(shape))


def _enlarged(shape: Sequence[int], axes: set[int], factor: int) -> tuple[int, ...]:
    """`factor` times the sizes of `axes`: what divided a size divides it still."""
    return tuple(size * factor if axis in axes else size for axis, size in enumerate(shape))


_Sizes = tuple[dict[int, Dim], ...]


def _exported(model: nn.Module, inputs: Sequence[Tensor], sizes: _Sizes = ()) -> ExportedProgram:
    """The functional export at the inputs' sizes, of which those in `sizes`, by input and axis, are left free."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    ahead = next((n for n, one in enumerate(parameters) if one.kind is inspect.Parameter.VAR_POSITIONAL), None)
    if ahead is not None and len(sizes) > ahead:  # forward(x, *args): the exporter takes args for one tuple
        sizes = (*sizes[:ahead], sizes[ahead:])
    with _StopAtUselessSizes(), quietly("torch.fx.experimental.symbolic_shapes"), redirect_stderr(StringIO()):
        program = torch.export.export(model, tuple(inputs), dynamic_shapes=sizes or None)
    write_elsewhere(program)
    return program.run_decompositions({}) if _writes_in_place(program) else program


def _of_several(model: nn.Module, examples: Sequence[Tensor]) -> ExportedProgram:
    """The export of a model of several inputs: of a free batch, which they share, where it is right at other batches.

    All other sizes are the example's.
    """
    batches = {one.shape[:1] for one in examples}
    if len(batches) == 1 and batches != {()}:
        two = [torch.cat([one, one]) if len(one) == 1 else one for one in examples]  # 1 would be taken for a constant
        try:
            program = _exported(model, two, ({0: Dim("batch", min=1)},) * len(two))
            if _is_right_at(program, model, examples, batches=(1, 3)):
                return program
        except Exception:  # the exporter raises whatever the model's code led it to
            pass
    try:
        return _exported(model, examples)
    except Exception as error:
        raise _not_captured(error) from error


def _is_right_at(
    program: ExportedProgram, model: nn.Module, examples: Sequence[Tensor], batches: Sequence[int]
) -> bool:
    graph = graph_module(program)
    for batch in batches:
        inputs = [random_input(one, (batch, *one.shape[1:])) for one in examples]
        with Recorder() as recorder:
            want = run(model, inputs)
        if difference(run(graph, inputs), want) > tolerance(model, inputs, want, *recorder.dtypes):
            return False
    return True


def _not_captured(error: Exception) -> RepnetsError:
    reason = str(error).strip().partition("\n")[0].rstrip(". ")
    if kind := re.match(r"Found <class '(.+?)'> in output", reason):
        return RepnetsError(
            f"The model returns a {kind[1]}, which torch.export knows nothing of. Return tensors, numbers and None in "
            "tuples, lists and dicts, or register the class with torch.export.register_dataclass."
        )
    if kept := re.search(r"fake tensor in .*model attribute: (?:(\S+)\.)?\w+", reason):
        module = f"module {kept[1]!r}" if kept[1] else "model"
        return RepnetsError(
            f"torch.export cannot capture the model: the forward of the {module} computes a tensor and keeps it, for "
            "example by `self.conv.weight.data = ...`. Compute such weights once, before the forward, and let the "
            "forward only read them."
        )
    line = _line_of_model(error)
    return RepnetsError(
        f"torch.export cannot capture the model{f', at {line}' if line else ''}: {reason}. The usual cause is Python "
        "code that branches on the values of a tensor; write it with torch.where, or decide it before the forward."
    )


def _line_of_model(error: Exception) -> str:
    """The last line of the model's own code that led to an error; empty where it is in no file."""
    libraries = [f"{Path(torch.__file__).parent}{os.sep}", f"{Path(__file__).parent}{os.sep}"]
    frames = [one for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith(tuple(libraries))]
    last = next((one for one in reversed(frames) if one.line), None)
    return f"{Path(last.filename).name}:{last.lineno} ({last.line})" if last else ""


def _writes_in_place(program: ExportedProgram) -> bool:
    graphs = [module.graph for module in program.graph_module.modules() if isinstance(module, GraphModule)]
    schemas = [getattr(node.target, "_schema", None) for graph in graphs for node in graph.nodes]
    return any(schema is not None and schema.is_mutable for schema in schemas)
