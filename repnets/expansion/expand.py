"""The way back: any plain CNN in training form, with branches that `repnets.fuse` folds again."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from difflib import get_close_matches
from functools import partial
from types import MappingProxyType

from torch import Tensor, nn

from repnets.errors import RepnetsError
from repnets.expansion import STYLES, branches
from repnets.expansion.branches import CONVOLUTIONS, Conv, OnlineKernel

_Branch = Callable[[Conv], nn.Module | None]
_LINES = {f"line{axis}": partial(branches.line, axis=axis) for axis in range(3)}

# The branches beside the convolution itself, by name. OREPA adds kernels and no branches.
_BRANCHES: Mapping[str, Mapping[str, _Branch]] = MappingProxyType(
    {
        "repvgg": {"pointwise": branches.pointwise, "identity": branches.identity},
        "mobileone": {
            **{f"same{number}": branches.same for number in range(1, 4)},
            "pointwise": branches.pointwise,
            "identity": branches.identity,
        },
        "acb": _LINES,
        "dbb": {"pointwise": branches.pointwise, "sequence": branches.sequence, "average": branches.average},
        "orepa": {},
    }
)


class ExpandedConv(nn.Module):
    """A convolution and the branches beside it, summed.

    Args:
        main: The convolution, or it and a batch norm.
        beside: The branches by name, each from and to the same shapes as `main`.
    """

    def __init__(self, main: nn.Module, beside: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.main = main
        self.beside = nn.ModuleDict(beside)

    def __getattr__(self, name: str) -> object:
        branches.require_unread(name)
        return super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        y = self.main(x)
        for branch in self.beside.values():
            y = y + branch(x)
        return y


def expand(model: nn.Module, style: str, keep_function: bool = True, leave: Collection[str] = ()) -> nn.Module:
    """A copy of a network with training branches around its convolutions; `fuse` folds them into what was there.

    Train the copy and fuse it: the result has exactly the plain network's layers. With `keep_function` the copy
    computes what the network computes, in training mode too, so a trained network can be fine-tuned; without, the
    branches start as their paper has them, for training from random weights.

    Args:
        model: Any network; it is not changed. Its `nn.Conv1d`, `nn.Conv2d` and `nn.Conv3d` are expanded, see
            `what_expands`. Its parameters keep their names, with `.main` (`.conv` in OREPA) before the last part.
        style: "repvgg" (arXiv 2101.03697): 1x1 and identity. "mobileone" (2206.04040): three more equal convolutions,
            1x1 and identity. "acb" (1908.03930): one along each axis. "dbb" (2103.13425): 1x1, 1x1 then k x k, 1x1
            then average. "orepa" (2204.00826): the kernel is a sum of six, and one convolution runs.
        keep_function: The branches' last batch norms (OREPA: factors) are zero at first, and the convolution keeps
            its bias and no batch norm. Else each branch and the convolution have a batch norm with gain one (OREPA:
            one after the convolution). Default True.
        leave: Names of convolutions, or of modules that hold some, that stay as they are: those whose `weight` other
            code reads, say. Default: none.

    Returns:
        The copy: on the model's devices, in its dtypes and modes. Random weights are drawn from torch's generator.

    Raises:
        RepnetsError: there is no such style, no such name in `leave`, or no convolution that can be expanded.
    """
    if not isinstance(model, nn.Module):
        raise RepnetsError(f"`expand` takes an nn.Module, and got a {type(model).__name__}.")
    left = what_expands(model, style, leave)
    if all(left.values()):
        reasons = "; ".join(f"{name or 'it'} {reason}" for name, reason in list(left.items())[:3])
        raise RepnetsError(
            f"There is nothing to expand in the style of {style!r}: {reasons or 'the network has no convolution'}."
        )
    result = copy.deepcopy(model)
    made: dict[nn.Module, nn.Module] = {}
    for name, reason in left.items():
        if reason:
            continue
        conv = result.get_submodule(name)
        if conv not in made:
            made[conv] = _expanded(conv, style, keep_function)
        if not name:
            return made[conv]
        result.set_submodule(name, made[conv])
    return result


def what_expands(model: nn.Module, style: str, leave: Collection[str] = ()) -> dict[str, str]:
    """Each convolution of a network, and why it is left as it is; "" for one that `expand` expands.

    Args:
        model: Any network.
        style: As for `expand`, as the next.
        leave: Names.

    Returns:
        Names as of `named_modules`, in their order; a module that stands at several places, once for each.

    Raises:
        RepnetsError: there is no such style, or no such name in `leave`.
    """
    if style not in STYLES:
        raise RepnetsError(f"There is no style {style!r}.{_nearest(style, STYLES)} Known: {', '.join(STYLES)}.")
    modules = dict(model.named_modules(remove_duplicate=False))
    if unknown := [name for name in leave if name not in modules]:
        raise RepnetsError(f"`leave` names {unknown[0]!r}, and no module is called so.{_nearest(unknown[0], modules)}")
    kinds = tuple(CONVOLUTIONS)
    asked = {f"{name}." if name else "" for name in leave}
    return {
        name: "is left, as `leave` says" if f"{name}.".startswith(tuple(asked)) else _why_left(one, style)
        for name, one in modules.items()
        if isinstance(one, kinds)
    }


def _nearest(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(str(name), list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _why_left(conv: Conv, style: str) -> str:
    if type(conv) not in CONVOLUTIONS:
        return f"is a {type(conv).__name__}, a kind of convolution of its own"
    if conv.padding_mode != "zeros":
        return f"is padded by the mode {conv.padding_mode!r}"
    if any(size % 2 == 0 for size in conv.kernel_size):
        return f"has a kernel of {'x'.join(map(str, conv.kernel_size))}, without a middle"
    if max(conv.kernel_size) == 1 and style != "mobileone":
        return "has a kernel of one position"
    if style == "acb" and sum(size > 1 for size in conv.kernel_size) < 2:
        return "has a kernel along one axis alone"
    return ""


def _expanded(conv: Conv, style: str, keep_function: bool) -> nn.Module:
    if style == "orepa":
        online = OnlineKernel(conv, 0.0 if keep_function else 1.0)
        made = online if keep_function else _with_batch_norm(online, conv)
    else:
        found = {name: branch(conv) for name, branch in _BRANCHES[style].items()}
        beside = {name: branch for name, branch in found.items() if branch is not None}
        if keep_function:
            for branch in beside.values():
                nn.init.zeros_(branch.bn.weight)
        made = ExpandedConv(conv if keep_function else _with_batch_norm(conv, conv), beside)
    return made.to(device=conv.weight.device, dtype=conv.weight.dtype).train(conv.training)


def _with_batch_norm(layer: nn.Module, conv: Conv) -> nn.Sequential:
    return nn.Sequential(OrderedDict(conv=layer, bn=branches.batch_norm(conv)))
