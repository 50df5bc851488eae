"""Programs written with coremltools' own builder, saved, and run by the evaluator."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.backends.coreml import evaluator
from pipeline.quiet import quiet


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Save a program: ``written(lambda mb, x: mb.relu(x=x), array)``; its inputs are shaped and typed as the arrays."""

    def write(build: Callable[..., Any], *arrays: np.ndarray, target: str = "iOS17", name: str = "built") -> Path:
        with quiet():
            import coremltools
            from coremltools.converters.mil import Builder as mb
            from coremltools.converters.mil.mil import types

            kinds = {"float32": types.fp32, "int32": types.int32, "bool": types.bool}
            specs = [mb.TensorSpec(array.shape, kinds[str(array.dtype)]) for array in arrays]
            opset = getattr(coremltools.target, target)
            names = [f"x{index}" for index in range(len(arrays))]
            take = eval(f"lambda {', '.join(names)}: build(mb, {', '.join(names)})", {"build": build, "mb": mb})
            model = coremltools.convert(
                mb.program(input_specs=specs, opset_version=opset)(take),
                convert_to="mlprogram",
                minimum_deployment_target=opset,
                compute_precision=coremltools.precision.FLOAT32,
                pass_pipeline=coremltools.PassPipeline.EMPTY,
                skip_model_load=True,
            )
            file = tmp_path / f"{name}.mlpackage"
            model.save(str(file))
            del model
        return file

    return write


@pytest.fixture
def computed(written: Callable[..., Path]) -> Callable[..., list[Any]]:
    """Save a program and run it, in float32 unless ``exact=False``; its outputs in order."""

    def compute(build: Callable[..., Any], *arrays: np.ndarray, exact: bool = True, **options: Any) -> list[Any]:
        program = evaluator.load(written(build, *arrays, **options), exact)
        outputs = evaluator.run(program, dict(zip(program.inputs, arrays, strict=True)))
        return [outputs[name] for name in program.outputs]

    return compute


@pytest.fixture
def same() -> Callable[..., None]:
    """Holds an array against a torch tensor, shape, kind of numbers and values, to 1e-5 of the largest.

    A program cannot give out truth values: coremltools makes them float32.
    """

    def check(given: np.ndarray, expected: Any, tolerance: float = 1e-5) -> None:
        expected = expected.detach().numpy()
        expected = expected.astype("float32") if expected.dtype == bool else expected
        assert given.shape == expected.shape
        assert given.dtype.kind == expected.dtype.kind
        if expected.dtype.kind != "f":
            assert np.array_equal(given, expected)
            return
        assert np.isfinite(expected).all() and expected.size
        assert np.abs(given - expected).max() <= tolerance * np.abs(expected).max()

    return check
