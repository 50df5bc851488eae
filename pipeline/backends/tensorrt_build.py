"""Build one engine from an ONNX file, in a process of its own; the backend `tensorrt` runs it.

    python -m pipeline.backends.tensorrt_build fused.onnx fused.engine 8.6 8.9 12.0

Full TensorRT builds for the GPU of this machine. Where it or the GPU is missing, TensorRT-RTX builds
ahead of time for the compute capabilities that are named; that needs no GPU. What came of it is
printed as one line of JSON. A process of its own, since a build that fails spoils the next one in the
same process, and since the first logger of a process stays.
"""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

MAKERS = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}


def main(argv: list[str]) -> int:
    """Build, and print ``{"maker", "version", "compute_capabilities", "passed_over"}``, or ``{"error"}``."""
    onnx_file, engine_file, *capabilities = argv
    passed_over = {}
    for name, maker in MAKERS.items():
        try:
            trt = importlib.import_module(name)
            messages, logger = _logger(trt)
            builder = trt.Builder(logger)
        except (ImportError, OSError, TypeError, RuntimeError) as error:
            # Without a driver the constructor gives a null pointer, which pybind11 makes a TypeError.
            passed_over[maker] = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
            continue
        targets = capabilities if name == "tensorrt_rtx" else []
        try:
            Path(engine_file).write_bytes(_build(trt, logger, builder, Path(onnx_file), targets))
        except ValueError as error:
            return _print({"error": " ".join([f"{maker} {trt.__version__}: {error}", *messages[-3:]])}, 1)
        made = {"maker": maker, "version": trt.__version__, "compute_capabilities": targets}
        return _print({**made, "passed_over": passed_over}, 0)
    return _print({"missing": passed_over}, 1)


def compute_capabilities(trt: ModuleType) -> dict[str, Any]:
    """What TensorRT-RTX builds for, e.g. ``"8.9"``, and its own name of each."""
    members = trt.ComputeCapability.__members__
    return {f"{name[2:-1]}.{name[-1]}": value for name, value in members.items() if name.startswith("SM")}


def _print(document: dict[str, Any], code: int) -> int:
    print(json.dumps(document), flush=True)
    return code


def _logger(trt: ModuleType) -> tuple[list[str], Any]:
    """A logger that keeps the errors: where a build gives None, it alone knows why."""
    messages: list[str] = []

    class Keep(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                messages.append(message)

    return messages, Keep()


def _build(trt: ModuleType, logger: Any, builder: Any, onnx_file: Path, capabilities: list[str]) -> bytes:
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx_file.read_bytes()):
        raise ValueError("; ".join(_parser_error(parser.get_error(index)) for index in range(parser.num_errors)))
    if network.num_outputs == 0:
        raise ValueError("the ONNX file parses to a network without an output")
    config = builder.create_builder_config()
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            config.set_compute_capability(_compute_capability(trt, capability), index)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ValueError("the build failed.")
    return bytes(engine)


def _network_flags(trt: ModuleType) -> int:
    """Explicit batch and strong typing, by name: their numbers differ between TensorRT 10 and 11."""
    known = trt.NetworkDefinitionCreationFlag
    names = [name for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED") if hasattr(known, name)]
    return sum(1 << int(getattr(known, name)) for name in names)


def _compute_capability(trt: ModuleType, capability: str) -> Any:
    known = compute_capabilities(trt)
    if capability not in known:
        raise ValueError(
            f"it has no compute capability `{capability}`; known: {', '.join(known)}. Set "
            f"`compute_capabilities` in the target's options; for a Jetson (8.7, 11.0), build on the device "
            f"with build_engine.sh."
        )
    return known[capability]


def _parser_error(error: Any) -> str:
    where = f"node `{error.node_name()}` ({error.node_operator()})" if error.node_name() else "the file"
    code = str(error.code()).rpartition(".")[2]
    return f"{where}: {code}: {error.desc()}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
