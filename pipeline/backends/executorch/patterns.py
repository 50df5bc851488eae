"""ExecuTorch's lowering without the patterns that a program cannot contain.

XNNPACK's passes look for attention and for bilinear upsampling that were taken apart. In every process they first
export both patterns, which is a quarter of what a small network's export takes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_PATTERNS = (  # module, its function, what that gives where there is none, and parts of the names of operators
    ("sdpa", "get_graphs", [], ("softmax", "attention")),
    ("bilinear_2d", "get_graphs_dict", {}, ("upsample", "index", "gather")),
)


@contextmanager
def only_those_of(program: "torch.export.ExportedProgram") -> Iterator[None]:
    """Inside, patterns none of whose operators the program has are not looked for."""
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    replaced = []
    try:
        for name, function, nothing, parts in _PATTERNS:
            module = import_module(f"executorch.backends.xnnpack.partition.graphs.{name}")
            if not any(part in operator for part in parts for operator in operators):
                replaced.append((module, function, getattr(module, function)))
                setattr(module, function, lambda nothing=nothing: nothing)
        yield
    finally:
        for module, function, was in replaced:
            setattr(module, function, was)
