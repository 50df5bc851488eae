"""The end of a fused network: its results in the container that the model gives them in."""

from collections import namedtuple

from torch import nn
from torch.utils import _pytree as pytree

_PLAIN = (tuple, namedtuple)  # lists and dicts in a graph are classes of torch.fx's own


def is_plain(spec: pytree.TreeSpec) -> bool:
    """Whether a graph can give the container itself: tuples of tuples."""
    return spec.is_leaf() or (spec.type in _PLAIN and all(map(is_plain, spec.children())))


class Outputs(nn.Module):
    """Puts the results of a network into a container, such as a list, an OrderedDict or a registered dataclass.

    Args:
        spec: Of the container.
    """

    def __init__(self, spec: pytree.TreeSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, *leaves: object) -> object:
        return pytree.tree_unflatten(leaves, self.spec)

    def extra_repr(self) -> str:
        return self.spec.type.__name__
