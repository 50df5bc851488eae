"""ExecuTorch with XNNPACK: a .pte for the CPU of Android phones, iPhones and ARM boards."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts.manifest import ExportSpec, Unavailable, versions
from pipeline.backends.base import Backend, Served, Traced
from pipeline.backends.executorch import needs, patterns, pte, runtime
from pipeline.backends.executorch.bundle import BUNDLE
from pipeline.backends.signatures import Signature, Tensor
from pipeline.config.backend_rules import BackendRules
from pipeline.errors import StageError, first_line, reading
from pipeline.models.passes.float16 import half
from pipeline.models.passes.fold_batch_norms import fold_pairs
from pipeline.models.passes.int8_padding import round_before_pads
from pipeline.models.passes.keep_mean_dims import keep_dimensions
from pipeline.quiet import quiet

if TYPE_CHECKING:
    import torch


def export(program: "torch.export.ExportedProgram", files: Sequence[Path], spec: ExportSpec) -> dict[str, Any]:
    """Lower a program to XNNPACK and write it.

    Args:
        program: float32, of static shape ``spec.input_shape``.
        files: where the one .pte goes.
        spec: ``fp16`` gives float16 weights and arithmetic between a cast of the float32 input and one
            of each output; the casts run outside XNNPACK.

    Returns:
        ``maker``, ``version``, ``delegate``, ``fully_delegated``, and ``operations_outside`` XNNPACK by
        name, read back from the file.

    Raises:
        StageError: ExecuTorch cannot lower an operation.
    """
    lowered = round_before_pads(keep_dimensions(fold_pairs(half(program) if spec.precision == "fp16" else program)))
    with quiet():
        import torch
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        def lower(alone: bool) -> bytes:
            with torch.no_grad(), patterns.only_those_of(lowered):
                partitioner = XnnpackPartitioner(per_op_mode=alone)
                return to_edge_transform_and_lower(lowered, partitioner=[partitioner]).to_executorch().buffer

        try:
            content = _first_that_works(lower)
        except Exception as error:
            raise StageError(
                f"ExecuTorch cannot lower the network: {first_line(error)}. Replace the operation in the "
                f"network, or leave this target out."
            ) from error
    files[0].write_bytes(content)
    found = pte.read(files[0])
    return {
        "maker": "ExecuTorch",
        "version": versions("executorch")["executorch"],
        "delegate": "XNNPACK",
        "delegate_calls": found.delegates.total(),
        "fully_delegated": not found.kernels,
        "operations_outside": dict(sorted(found.kernels.items())),
    }


def _first_that_works(lower: "Callable[[bool], bytes]") -> bytes:
    """A program's file, of as few graphs of XNNPACK as can be; else with each operation in a graph of its own.

    XNNPACK's passes fail at some graphs of operations each of which it takes: of a softplus between int8 layers, say.
    """
    try:
        return lower(False)
    except Exception as error:
        try:
            content = lower(True)
        except Exception:
            raise error from None
        print(
            f"warning: XNNPACK cannot take the network as a whole ({first_line(error)}), so each of its operations is "
            "a graph of its own, which is slower. manifest.json lists what is outside of XNNPACK.",
            file=sys.stderr,
        )
        return content


def census(file: Path) -> dict[str, int]:
    """Operations that a .pte runs, inside XNNPACK and out of it, by name.

    ``convolution`` counts every convolution node. A batch norm that follows a convolution is folded
    into it when the file is made, and XNNPACK runs any other as a depthwise convolution, so
    ``batch_norm`` counts only what is left to ExecuTorch's own kernels. ``join`` counts XNNPACK's additions of
    two values that it computed: a branch that was not folded ends in one. ``int8`` counts the convolutions and products
    that XNNPACK computes on int8.

    Raises:
        InputError: the file is not a whole ExecuTorch program.
    """
    found = pte.read(file)
    operations = found.nodes + found.kernels
    return {
        "convolution": sum(
            count for name, count in operations.items() if "conv" in name.lower() and name != "XNNConvert"
        ),
        "batch_norm": sum(count for name, count in operations.items() if "batch_norm" in name),
        "join": found.joins,
        "int8": found.int8,
        "total": operations.total(),
        **dict(sorted(operations.items())),
    }


def unavailable() -> Unavailable | None:
    """None where ExecuTorch's runtime is installed: it runs XNNPACK on any CPU that it has a wheel for."""
    if versions("executorch")["executorch"] is not None:
        return None
    return Unavailable(
        "ExecuTorch is not installed.", "Install it with the same version of torch: pip install executorch."
    )


def signature(file: Path) -> Signature:
    """What a .pte takes and gives. InputError where it is not a whole ExecuTorch program."""
    with reading(file):
        taken, given = ([Tensor(shape, dtype=dtype) for shape, dtype in side] for side in pte.tensors(file))
        return Signature(taken[0], tuple(given), taken[0].shape, further=tuple(taken[1:]))


RUNTIME = runtime.RUNTIME
BACKEND = Backend(
    name="executorch",
    title="ExecuTorch",
    runtime=RUNTIME,
    checked_by="ExecuTorch",
    suffixes=(".pte",),
    packages=("torch", "executorch"),
    run_by=("executorch",),
    signature=signature,
    census=census,
    unavailable=unavailable,
    export=export,
    files=lambda: ("{form}.pte",),
    stands_in_for=("int8",),
    rules=BackendRules(
        title="ExecuTorch",
        precisions=("int8", "fp16", "fp32"),
        candidates=("fp32", "fp16", "int8"),
        device_programs=("device_python", "runner"),
    ),
    served=Served(runtime.__name__, ("torch", "executorch")),
    traced=Traced(runtime.WARMUP_RUNS, runtime.read_trace),
    runner_help=needs.RUNNER_HELP,
    requirements=needs.REQUIREMENTS,
    can_run_on=needs.can_run_on,
    bundle=BUNDLE,
)
