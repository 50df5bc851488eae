"""What the code uses of TensorRT's Python interface is there, read from the code itself.

TensorRT-RTX's bindings are installed and stand for those of full TensorRT; docs/tensorrt.md says which
versions of the latter were looked at by hand.
"""

import ast
import inspect

import pytest

from pipeline.backends.tensorrt import builder, engines, runtime

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has wheels for Linux x86-64 and Windows alone")

# Which class a name or an attribute of the code is of.
OBJECTS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "error": "ParserError",
    "profile": "IOptimizationProfile",
    "one": "ITensor",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
    "mode": "TensorIOMode",
    "known": "NetworkDefinitionCreationFlag",
}
PYTHON = {"__members__", "partition", "items"}
FUNCTIONS = {
    builder: "_logger _build _configure _open_batch _monitor _load_timing_cache _save_timing_cache _parser_error",
    runtime: "_load _bind profile",
}


def used(module, function):
    """Dotted names below TensorRT's module, of all that a function reads or sets."""
    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(getattr(module, function)))):
        if not isinstance(node, ast.Attribute):
            continue
        path, owner = [node.attr], node.value
        while isinstance(owner, ast.Attribute):
            path.insert(0, owner.attr)
            owner = owner.value
        if not isinstance(owner, ast.Name):
            continue
        path.insert(0, owner.id)
        if "trt" in path[:2]:  # trt.Logger.ERROR, engine.trt.IProfiler
            found |= {".".join(path[path.index("trt") + 1 :])} - {""}
        elif path[0] in ("loaded", "engine") and len(path) > 2 and path[1] in OBJECTS:  # engine.context.profiler
            found.add(f"{OBJECTS[path[1]]}.{path[2]}")
        elif path[0] in OBJECTS and path[1] not in PYTHON and path[1] not in OBJECTS:
            found.add(f"{OBJECTS[path[0]]}.{path[1]}")
    return found


NAMES = sorted(
    {name for module, functions in FUNCTIONS.items() for one in functions.split() for name in used(module, one)}
)


@pytest.mark.parametrize("name", NAMES)
def test_what_the_code_uses_is_there(name):
    owner = trt
    for part in name.split("."):
        assert hasattr(owner, part), f"TensorRT-RTX {trt.__version__} has no {name}"
        owner = getattr(owner, part)


def test_the_code_was_read():
    expected = {
        "Logger.ERROR", "ILogger.INTERNAL_ERROR", "IProgressMonitor", "IProfiler", "BuilderFlag.TF32",
        "MemoryPoolType.WORKSPACE", "ProfilingVerbosity.DETAILED", "LayerInformationFormat.JSON",
        "Builder.build_serialized_network", "IBuilderConfig.progress_monitor", "IBuilderConfig.create_timing_cache",
        "IOptimizationProfile.set_shape", "ITensor.shape", "ParserError.node_operator",
        "Runtime.deserialize_cuda_engine",
        "ICudaEngine.get_tensor_profile_shape", "IExecutionContext.execute_async_v3", "IExecutionContext.profiler",
        "IExecutionContext.set_tensor_address", "EngineInspector.get_engine_information",
    }  # fmt: skip
    assert expected <= set(NAMES)


def test_what_goes_by_another_path_is_there():
    assert hasattr(trt.ITimingCache, "serialize")
    assert {"phase_start", "step_complete", "phase_finish"} <= set(dir(trt.IProgressMonitor))
    assert "report_layer_time" in dir(trt.IProfiler)
    assert {"INPUT", "OUTPUT"} <= set(trt.TensorIOMode.__members__)
    assert engines.rtx_capabilities(trt)
