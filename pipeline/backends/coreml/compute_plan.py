"""Core ML's compute plan of a package: the unit that runs each operation, and its estimated share of the whole.

It follows coremltools' source. It has not run on a Mac or an iPhone yet.
"""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.backends.coreml import iphone, library, packages, runtime
from pipeline.backends.coreml.evaluator import node_name
from pipeline.backends.coreml.runtime import kind_of, unit_of
from pipeline.errors import StageError
from pipeline.quiet import quiet

if TYPE_CHECKING:
    import numpy as np


def profile(file: Path, threads: int, image: "np.ndarray", runs: int) -> list[dict[str, Any]]:
    """Read Core ML's plan for a package: on this Mac, or on the iPhone connected where the package says so.

    Args:
        file: an .mlpackage of this backend.
        threads: cannot be set.
        image: float32 (N, 3, H, W), of the file's input shape, normalized.
        runs: of the whole, which are shared out among the operations.

    Returns:
        An entry an operation, in the order of execution, constants left out: ``name``, of the node that it came
        from, as `evaluator.layers` names it; ``kind``: ``convolution``, ``depthwise``, ``linear``, else the
        package's own word; ``unit``: CPU, GPU or NeuralEngine, or None where Core ML does not say; ``cost``, the
        part of the whole in 0..1 that Core ML expects, or None; ``ms``, that part of the median run;
        ``estimated``, always true: coremltools' own benchmarker makes ``ms`` the same way, since Core ML times no
        operation by itself.

    Raises:
        InputError: the file is not an ML program.
        StageError: Core ML gives no plan, this is not a Mac, or no iPhone is connected.
    """
    specification = packages.read(file)
    noted = runtime.how(specification.description)
    runtime.require(file)
    if noted["device"] == "iphone":
        whole_ms, found = iphone.plan(file, image, runs)
    else:
        whole_ms, found = _plan_here(file, specification.description, image, runs)
    kinds = _kinds(*packages.main_block(file, specification))
    return [
        {
            "name": node_name(one["output"]),
            "kind": kinds.get(one["output"], one["kind"]),
            "ms": (one["cost"] or 0.0) * whole_ms,
            "estimated": True,
            "unit": one["unit"],
            "cost": one["cost"],
        }
        for one in found
    ]


def _plan_here(file: Path, description: Any, image: "np.ndarray", runs: int) -> tuple[float, list[dict[str, Any]]]:
    """The median run, ms, and the operations of the plan."""
    model = runtime.load(file)  # it is held until the plan is there: its compiled form goes with it
    inputs = runtime.feeder(description)(image)
    with quiet():
        coremltools = library.load()
        from coremltools.models.compute_plan import MLComputePlan

        try:
            found = MLComputePlan.load_from_path(
                model.get_compiled_model_path(),
                compute_units=coremltools.ComputeUnit[runtime.how(description)["compute_units"]],
            )
        except Exception as error:
            raise StageError(
                f"Core ML gives no plan for {file}: {error}. It takes macOS 14.4 or newer; bench works without."
            ) from error
    model.predict(inputs)
    return statistics.median(_run_ms(model, inputs) for _ in range(runs)), list(entries(found))


def _run_ms(model: Any, inputs: dict[str, Any]) -> float:
    begin = time.perf_counter_ns()
    model.predict(inputs)
    return (time.perf_counter_ns() - begin) / 1e6


def entries(plan: Any) -> Iterator[dict[str, Any]]:
    """``output``, ``kind``, ``unit`` and ``cost`` of each operation in a `coremltools...MLComputePlan`."""
    for function in plan.model_structure.program.functions.values():
        for operation in _operations(function.block):
            cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
            yield {
                "output": operation.outputs[0].name if operation.outputs else operation.operator_name,
                "kind": kind_of(operation.operator_name),
                "unit": unit_of(plan.get_compute_device_usage_for_mlprogram_operation(operation)),
                "cost": None if cost is None else cost.weight,
            }


def _operations(block: Any) -> Iterator[Any]:
    """Operations of a block and of the blocks inside it. Constants run nowhere."""
    for operation in block.operations:
        if kind_of(operation.operator_name) != "const":
            yield operation
        for nested in operation.blocks:
            yield from _operations(nested)


def _kinds(block: Any, inputs: Any) -> dict[str, str]:
    """``convolution`` or ``depthwise`` of each convolution in a block of a specification, by its output's name."""
    made = [output for operation in block.operations for output in operation.outputs]
    shapes = {one.name: [size.constant.size for size in one.type.tensorType.dimensions] for one in (*inputs, *made)}
    found = {}
    for operation in block.operations:
        if operation.type in ("conv", "conv_transpose"):
            image, weight = (shapes[operation.inputs[key].arguments[0].name] for key in ("x", "weight"))
            is_depthwise = operation.type == "conv" and weight[1] == 1 < weight[0] == image[1]
            found[operation.outputs[0].name] = "depthwise" if is_depthwise else "convolution"
    return found
