"""What a user hands to `fuse` and `capture`: a model, taken out of its wrappers, and example inputs."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin
from torch.optim.swa_utils import AveragedModel

from repnets.errors import RepnetsError

Example = Tensor | tuple[Tensor, ...]

_WRAPPERS = (AveragedModel, nn.DataParallel, nn.parallel.DistributedDataParallel)


def unwrapped(model: nn.Module) -> nn.Module:
    """The network within `torch.compile`, `AveragedModel` and data parallelism, which compute what it computes.

    Raises:
        RepnetsError: It is no network, is compiled by TorchScript, or has no values.
    """
    while isinstance(model, (*_WRAPPERS, torch._dynamo.OptimizedModule)):
        model = model.module if isinstance(model, _WRAPPERS) else model._orig_mod
    if isinstance(model, torch.jit.ScriptModule):
        raise RepnetsError(
            "The model is compiled by TorchScript, which torch.export cannot capture. Give the network that it was "
            "made of, an nn.Module; its weights are in `.state_dict()` of the compiled one."
        )
    if not isinstance(model, nn.Module):
        raise RepnetsError(f"{_what(model)}. Give the network itself, an nn.Module in eval mode.")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if isinstance(tensor, UninitializedTensorMixin):
            raise RepnetsError(f"{name} has no shape yet, since a lazy layer is made by its first call. Run the model.")
        if tensor.is_meta:
            raise RepnetsError(
                f"{name} is on the meta device and has no values. Make the model outside of `torch.device('meta')`, or "
                "load its weights with load_state_dict(..., assign=True)."
            )
    return model


def without_compiling(model: nn.Module) -> nn.Module:
    """A model whose layers are not compiled when they are called, which takes minutes; it is changed in place."""
    for module in list(model.modules()):
        module._compiled_call_impl = None
        for name, child in module.named_children():
            setattr(module, name, unwrapped(child) if isinstance(child, torch._dynamo.OptimizedModule) else child)
    return model


def require_options(cost: object, border: object) -> None:
    """Refuse what is no cost or no way to treat a border."""
    if cost is not None and not callable(cost):
        raise RepnetsError(
            f"`cost` is {cost!r:.100}, and has to be a function from a `repnets.fusion.cost_model.Work` to a number. "
            "Leave it out, or give a `CostModel` with the figures of your device."
        )
    if border not in ("refuse", "exact"):
        raise RepnetsError(f'`border` is {border!r:.100}, and has to be "refuse" or "exact".')


def tensors_of(example: object) -> tuple[Tensor, ...]:
    """The example inputs of a model, one or several.

    Raises:
        RepnetsError: They are no tensors, or have no values.
    """
    inputs = tuple(example) if isinstance(example, (tuple, list)) else (example,)
    if not inputs or not all(isinstance(one, Tensor) for one in inputs):
        found = ", ".join(type(one).__name__ for one in inputs) or "nothing"
        raise RepnetsError(
            f"The example input is {found}, and has to be a tensor, or a tuple of tensors for a model of several "
            f"inputs. {_remedy(example)}"
        )
    for one in inputs:
        if one.is_meta or not one.numel() or one.layout is not torch.strided:
            lack = "no values" if one.is_meta else "no element" if not one.numel() else "a sparse layout"
            raise RepnetsError(
                f"The example input, {tuple(one.shape)}, has {lack}, and the model has to run on it. Give a dense "
                "tensor with values, such as torch.zeros(1, 3, 224, 224)."
            )
    return inputs


def _what(model: object) -> str:
    if isinstance(model, Mapping):
        kind = "a state dict" if all(isinstance(one, Tensor) for one in model.values()) else "a dict"
        return f"The model is {kind}, which names weights and says nothing of what is computed with them"
    if isinstance(model, type):
        return f"The model is the class {model.__name__}, and no network of it"
    if isinstance(model, torch.export.ExportedProgram):
        return "The model is an exported program, which keeps no modules"
    return f"The model is a {type(model).__name__}"


def _remedy(example: object) -> str:
    if isinstance(example, (tuple, list)) and example and all(isinstance(one, int) for one in example):
        return f"For an input of that shape, give torch.zeros{tuple(example)}."
    if type(example).__module__.startswith("numpy"):
        return "Give torch.as_tensor(array)."
    return "Wrap a model that takes anything else in one whose forward takes tensors alone."
