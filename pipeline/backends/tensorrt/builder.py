"""Build one engine from an ONNX file, in a process of its own, which `export.build` starts.

    python -m pipeline.backends.tensorrt.builder '{"onnx": "fused.onnx", "engine": "fused.engine", ...}'

Full TensorRT builds for the GPU of this machine. Where it or the GPU is missing, TensorRT-RTX builds
ahead of time for the compute capabilities that are named; that needs no GPU. The result is printed as
one line of JSON. It is a process of its own because a failed build breaks the next one in the same
process, and because the first logger of a process stays.

One way for TensorRT 10.3 to 11.4 and TensorRT-RTX: the network is strongly typed, so the ONNX file alone
says the precision; flags go by their names, since their numbers differ.
"""

import importlib
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.backends.tensorrt.engines import MAKERS, rtx_capabilities
from pipeline.backends.tensorrt.options import Options
from pipeline.backends.tensorrt.progress import Progress


def main(argv: list[str]) -> int:
    """Build, and print ``{"maker", "version", "compute_capabilities", "passed_over"}``, or ``{"error"}``.

    The request has ``onnx``, ``engine``, ``options``, ``timing_cache`` (a path in which ``{version}`` stands
    for TensorRT's) and ``progress``, a file descriptor.
    """
    request = json.loads(argv[0])
    options = Options.of(request["options"])
    engine_file = Path(request["engine"])
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
        targets = list(options.compute_capabilities) if name == "tensorrt_rtx" else []
        # TensorRT-RTX measures nothing ahead of time, so it has nothing to keep.
        cache = Path(request["timing_cache"].replace("{version}", trt.__version__)) if name == "tensorrt" else None
        try:
            with Progress(engine_file.name, request["progress"]) as progress:
                engine = _build(trt, logger, builder, Path(request["onnx"]), options, targets, cache, progress)
            engine_file.write_bytes(engine)
        except ValueError as error:
            return _print({"error": " ".join([f"{maker} {trt.__version__}: {error}", *messages[-3:]])}, 1)
        made = {"maker": maker, "version": trt.__version__, "compute_capabilities": targets}
        return _print({**made, "passed_over": passed_over}, 0)
    return _print({"missing": passed_over}, 1)


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


def _build(
    trt: ModuleType,
    logger: Any,
    builder: Any,
    onnx_file: Path,
    options: Options,
    capabilities: list[str],
    cache: Path | None,
    progress: Progress,
) -> bytes:
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx_file.read_bytes()):
        raise ValueError("; ".join(_parser_error(parser.get_error(index)) for index in range(parser.num_errors)))
    if network.num_outputs == 0:
        raise ValueError("the ONNX file parses to a network without an output")
    config = builder.create_builder_config()
    _configure(trt, config, options, capabilities)
    _open_batch(builder, config, network, options)
    monitor = _monitor(trt, progress)
    config.progress_monitor = monitor
    if cache:
        _load_timing_cache(config, cache)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ValueError("the build failed.")
    if cache:
        _save_timing_cache(config, cache)
    return bytes(engine)


def _configure(trt: ModuleType, config: Any, options: Options, capabilities: list[str]) -> None:
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that a profile can tell a layer's kind
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.builder_optimization_level is not None:
        config.builder_optimization_level = options.builder_optimization_level
    if options.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            config.set_compute_capability(_compute_capability(trt, capability), index)


def _open_batch(builder: Any, config: Any, network: Any, options: Options) -> Any:
    """Where the file leaves the batch open, the profile that says which batches will come; else None."""
    batches = options.batches()
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    for one in inputs:
        if (one.shape[0] == -1) != (batches is not None):
            is_what = "leaves the batch of" if one.shape[0] == -1 else f"has a batch of {one.shape[0]} for"
            raise ValueError(
                f"the ONNX file {is_what} `{one.name}`{' open' if one.shape[0] == -1 else ''}, and `dynamic_batch` "
                f"is {'not set' if batches is None else 'set'}: export it again under these options."
            )
    if batches is None:
        return None
    profile = builder.create_optimization_profile()
    for one in inputs:
        profile.set_shape(one.name, *((batch, *tuple(one.shape)[1:]) for batch in batches))
    if config.add_optimization_profile(profile) < 0:
        raise ValueError(f"`dynamic_batch` of {batches} is no valid range.")
    return profile


def _monitor(trt: ModuleType, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress.step(phase_name)
            return True  # False would cancel the build

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    return Monitor()


def _load_timing_cache(config: Any, file: Path) -> None:
    """Take up the measurements of earlier builds; those of another GPU or version are refused, and begun anew.

    With them the builder chooses as it chose before, so that the same file gives the same engine again.
    """
    known = file.read_bytes() if file.exists() else b""
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _save_timing_cache(config: Any, file: Path) -> None:
    """Appears by a rename, whole or not at all. Of two builds at once the later one's stays."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f"{file.name}.{os.getpid()}")
    new.write_bytes(bytes(config.get_timing_cache().serialize()))
    new.replace(file)


def _network_flags(trt: ModuleType) -> int:
    """Explicit batch and strong typing, by name: their numbers differ between TensorRT 10 and 11."""
    known = trt.NetworkDefinitionCreationFlag
    names = [name for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED") if hasattr(known, name)]
    return sum(1 << int(getattr(known, name)) for name in names)


def _compute_capability(trt: ModuleType, capability: str) -> Any:
    known = rtx_capabilities(trt)
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
