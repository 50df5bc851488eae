"""PyTorch itself: a torch.export program on disk (.pt2), run eagerly, one operation of its graph after the other.

No target: the others are compared with it, and `repnets bench` times it beside them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts.manifest import Unavailable
from pipeline.artifacts.samples import fitting
from pipeline.backends.base import Backend
from pipeline.backends.runtime import Runtime, Session
from pipeline.backends.signatures import Signature, Tensor
from pipeline.errors import InputError, StageError, first_line, reading
from pipeline.models import program_file, programs
from repnets.errors import RepnetsError

if TYPE_CHECKING:
    import numpy as np
    import torch


def census(file: Path) -> dict[str, int]:
    """Operations of a program by type; ``convolution``, ``batch_norm``, ``join``, ``int8``, ``total``.

    ``join`` counts additions of two values that depend on the input; ``int8`` the convolutions and linear layers that
    read int8 and weights of int8, and whose result, an activation after it or not, is made int8 again.

    Raises:
        InputError: as for `program_file.read`.
    """
    return programs.count(program_file.read(file)[0])


def unavailable() -> Unavailable | None:
    """None: this project does not work without PyTorch."""
    return None


def open_session(file: Path, threads: int) -> Session:
    """Load a program for timing or comparing.

    Args:
        file: a .pt2 with one image batch as its input.
        threads: of torch; they belong to the process.

    Returns:
        A session, for the file's own input shape where that is fixed.

    Raises:
        InputError: as for `program_file.read`.
    """
    return _session(file, threads, exact=False)


def open_exact_session(file: Path, threads: int) -> Session:
    """The same with every float16 in the program made float32, its weights as they are stored. See `open_session`."""
    return _session(file, threads, exact=True)


def outputs_by_layer(file: Path, image: "np.ndarray", *, exact: bool = False) -> "dict[str, np.ndarray]":
    """What each operation of a program gives, by the name of its node, in the order of execution.

    Args:
        file: a .pt2, as for `open_session`.
        image: float32 (N, 3, H, W).
        exact: as `open_exact_session` computes it.

    Returns:
        float32 arrays; operations that give no tensor of floating point are left out.

    Raises:
        InputError: as for `program_file.read`.
    """
    program, _ = program_file.read(file)
    fitting(image, programs.input_shapes(program), file)
    with _shape_refused(file, image.shape):
        return programs.outputs_of(_module(program, exact), image)


def _session(file: Path, threads: int, exact: bool) -> Session:
    import torch

    from repnets.outputs import named

    torch.set_num_threads(threads)
    program, _ = program_file.read(file)
    module = _module(program, exact)

    def run(images: "np.ndarray") -> "list[np.ndarray]":
        inputs = fitting(torch.from_numpy(images), programs.input_shapes(program), file)
        with torch.inference_mode(), _shape_refused(file, images.shape):
            given = module(*inputs)
        try:
            return [one.float().numpy() for one in named(given).values()]
        except RepnetsError as error:
            raise StageError(f"{file}: {error}.") from None

    return run


def _module(program: "torch.export.ExportedProgram", exact: bool) -> "torch.fx.GraphModule":
    module = program.module()
    if exact:
        module = module.float()
        for node in module.graph.nodes:
            node.args, node.kwargs = _widened(node.args), _widened(node.kwargs)
        module.recompile()
    return module


def _widened(value: Any) -> Any:
    """Arguments of a call with float32 in the place of float16."""
    import torch

    return torch.utils._pytree.tree_map(lambda one: torch.float32 if one is torch.float16 else one, value)


@contextmanager
def _shape_refused(file: Path, shape: tuple[int, ...]) -> "Iterator[None]":
    """Say which file it is that asserts another input size."""
    try:
        yield
    except AssertionError as error:
        raise InputError(f"{file} does not take an input of shape {tuple(shape)}: {first_line(error)}.") from error


def signature(file: Path) -> Signature:
    """What a program takes and gives. InputError as for `program_file.read`."""
    program, _ = program_file.read(file)
    shape, *more = programs.input_shapes(program)
    example = program.example_inputs[0][0].shape if program.example_inputs else shape
    with reading(file):
        given = programs.outputs(program)
    outputs = tuple(Tensor(programs.shape_of(value)) for value in given.values())
    names = program.graph_signature.user_inputs if more else (None,)  # an image has no name
    taken, *further = (Tensor(one, name) for one, name in zip((shape, *more), names, strict=True))
    return Signature(taken, outputs, tuple(example), further=tuple(further))


RUNTIME = Runtime(open_session=open_session, open_exact_session=open_exact_session, outputs_by_layer=outputs_by_layer)
BACKEND = Backend(
    name="pytorch",
    title="PyTorch",
    runtime=RUNTIME,
    checked_by="PyTorch",
    suffixes=(".pt2",),
    packages=("torch",),
    run_by=(),
    signature=signature,
    census=census,
    unavailable=unavailable,
)
