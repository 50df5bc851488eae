"""A network in float64, what the exact computations compare with."""

import copy

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def in_float64(model: nn.Module) -> nn.Module:
    """A copy of a network whose floating-point tensors are float64: parameters, buffers, and plain attributes too.

    `nn.Module.double` gives each module its own copy of a buffer that several share, so that a capture of the network
    names it otherwise, and leaves tensors that are plain attributes as they are. Here what is one tensor stays one.

    Raises:
        Exception: Whatever copy.deepcopy raises for the model.
    """
    tensors = {id(one): one for module in model.modules() for one in tree_leaves(vars(module)) if _is_float(one)}
    return copy.deepcopy(model, {key: _doubled(one) for key, one in tensors.items()})


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _doubled(tensor: Tensor) -> Tensor:
    wide = tensor.detach().to(torch.float64, copy=True)
    return nn.Parameter(wide, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else wide
