"""Which unit runs each operation of a package, and what part of the whole each costs, as Core ML estimates it.

Written from coremltools' source. It has not run on a Mac or an iPhone yet.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.backends.coreml import packages, phone, running
from pipeline.backends.coreml.evaluator import node_name
from pipeline.backends.coreml.running import kind_of, unit_of
from pipeline.backends.noise import quiet
from pipeline.errors import StageError

if TYPE_CHECKING:
    import numpy as np


def profile(file: Path, threads: int, image: "np.ndarray", runs: int) -> list[dict[str, Any]]:
    """Read Core ML's plan for a package: on this Mac, or on the iPhone connected where the package says so.

    Args:
        file: an .mlpackage of this backend.
        threads: cannot be set.
        image: float32 (N, 3, H, W), of the file's input shape, normalized; a Mac's plan needs no run.
        runs: on an iPhone, how often it is run.

    Returns:
        An entry an operation, in the order of execution, constants left out: ``name``, of the node that it came
        from, as `evaluator.layers` names it; ``kind``, of the operation in the package; ``unit``: CPU, GPU or
        NeuralEngine, or None where Core ML does not say; ``cost``, an estimated part of the whole in 0..1, or
        None; and ``ms``, which is None: Core ML times no operation by itself.

    Raises:
        InputError: the file is not an ML program.
        StageError: Core ML gives no plan, this is not a Mac, or no iPhone is connected.
    """
    noted = running.how(packages.read(file).description)
    running.require(file)
    if noted["device"] == "iphone":
        return phone.profile(file, image, runs)
    model = running.load(file)  # it is held until the plan is there: its compiled form goes with it
    with quiet():
        import coremltools
        from coremltools.models.compute_plan import MLComputePlan

        try:
            path, units = model.get_compiled_model_path(), coremltools.ComputeUnit[noted["compute_units"]]
            plan = MLComputePlan.load_from_path(path, compute_units=units)
        except Exception as error:
            raise StageError(
                f"Core ML gives no plan for {file}: {error}. It takes macOS 14.4 or newer; bench works without."
            ) from error
    return list(entries(plan))


def entries(plan: Any) -> Iterator[dict[str, Any]]:
    """The entries of `profile`, from a `coremltools.models.compute_plan.MLComputePlan` of an ML program."""
    for function in plan.model_structure.program.functions.values():
        for operation in _operations(function.block):
            usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
            cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
            yield {
                "name": node_name(operation.outputs[0].name) if operation.outputs else operation.operator_name,
                "kind": kind_of(operation.operator_name),
                "ms": None,
                "unit": unit_of(usage),
                "cost": None if cost is None else cost.weight,
            }


def _operations(block: Any) -> Iterator[Any]:
    """Operations of a block and of the blocks inside it. Constants run nowhere."""
    for operation in block.operations:
        if kind_of(operation.operator_name) != "const":
            yield operation
        for nested in operation.blocks:
            yield from _operations(nested)
