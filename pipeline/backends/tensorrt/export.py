"""Export a program as an ONNX file and an engine, with the builder that is on this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts.manifest import ExportSpec
from pipeline.artifacts.source_files import PROJECT
from pipeline.backends.onnx import backend as onnx
from pipeline.backends.tensorrt import build_script, trtexec
from pipeline.backends.tensorrt.engines import MAKERS, check_engine, compute_capability
from pipeline.backends.tensorrt.options import Options
from pipeline.errors import StageError

if TYPE_CHECKING:
    import torch


def files() -> tuple[str, ...]:
    """Names of the files of each form: the ONNX file, and an engine if a builder is on this machine."""
    return ("{form}.onnx", "{form}.engine") if _packages() or trtexec.find() else ("{form}.onnx",)


def export(program: "torch.export.ExportedProgram", files: Sequence[Path], spec: ExportSpec) -> dict[str, Any]:
    """Write the ONNX file and build an engine from it.

    Args:
        program: float32, of static shape ``spec.input_shape``.
        files: where the .onnx goes, and where a builder is installed the .engine.
        spec: the options are those of ``Options``.

    Returns:
        ``opset`` of the ONNX file, and of the engine ``maker``, ``version``, ``compute_capabilities``, and
        which other maker was ``passed_over`` and why.

    Raises:
        InputError: no compute capability is named, or the batch is not within ``dynamic_batch``.
        StageError: an operation has no ONNX counterpart, or the build fails.
    """
    onnx_file, *engine_files = files
    facts = onnx.export(program, [onnx_file], spec)
    if not engine_files:
        return {**facts, "maker": None, "reason": "no TensorRT is installed on the machine that exported this"}
    return {**facts, **build(onnx_file, engine_files[0], spec.options)}


def build(onnx_file: Path, engine_file: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Build an engine from an ONNX file, in a fresh process; how far it is shows on the terminal.

    Full TensorRT's Python package builds where it is installed and a GPU is here; else TensorRT-RTX's,
    which needs no GPU; where neither is installed, trtexec does, on a Jetson say.

    Args:
        onnx_file: what to build from; it carries the precision.
        engine_file: where the engine goes.
        options: see ``Options``.

    Returns:
        ``maker``, ``version``, ``compute_capabilities``, ``passed_over``.

    Raises:
        InputError: no compute capability is named, or the ONNX file is not valid.
        StageError: no builder is installed, or the build fails.
    """
    wanted = Options.of(options)
    onnx.check(onnx_file)  # the parser takes an empty file or text for a network without layers
    mine = _timing_caches() / f"tensorrt-{{version}}-sm{compute_capability()}.timing"
    cache = str(Path(wanted.timing_cache).expanduser().absolute() if wanted.timing_cache else mine)
    if not _packages() and trtexec.find() is not None:
        version = trtexec.build(onnx_file, engine_file, wanted, cache)
        built = {"maker": "TensorRT", "version": version, "compute_capabilities": [], "passed_over": {}}
    else:
        built = _build_by_python(onnx_file, engine_file, wanted, cache)
    built["version"] = check_engine(engine_file, built["maker"], built["version"])
    if built["maker"] == "TensorRT":
        built["compute_capabilities"] = [capability] if (capability := compute_capability()) else []
    return built


def write_extras(files: Sequence[Path], spec: ExportSpec) -> None:
    """Write ``build_engine.sh``, which builds and times the engines on a device that has TensorRT."""
    files[0].write_text(build_script.text(Options.of(spec.options), spec.inputs))
    files[0].chmod(0o755)


def host() -> str | None:
    """The GPU that an engine built here is for; None where TensorRT-RTX builds, the same on any machine."""
    capability = compute_capability()
    if capability is None or _packages() == ["tensorrt_rtx"]:
        return None
    if "tensorrt" in _packages():
        return f"compute capability {capability}"
    return f"compute capability {capability}, {found}" if (found := trtexec.fingerprint()) else None


def _packages() -> list[str]:
    """TensorRT's Python packages that are installed here."""
    return [name for name in MAKERS if find_spec(name)]


def _build_by_python(onnx_file: Path, engine_file: Path, options: Options, cache: str) -> dict[str, Any]:
    from pipeline.backends.tensorrt import builder

    progress = os.dup(2)  # the process' own standard error is kept, for what a crash says last
    request = {
        "onnx": str(onnx_file.absolute()),
        "engine": str(engine_file.absolute()),
        "options": options.model_dump(mode="json"),
        "timing_cache": cache,
        "progress": progress,
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", builder.__name__, json.dumps(request)],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            pass_fds=[progress],
        )
    finally:
        os.close(progress)
    try:
        built = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        built = {"error": f"the builder ended with {done.returncode}: {done.stderr.strip()[-500:]}"}
    if "missing" in built:
        reasons = "; ".join(f"{maker}: {reason}" for maker, reason in built["missing"].items())
        raise StageError(
            f"no engine can be built from {onnx_file.name} on this machine ({reasons}). On Linux x86-64 or "
            f"Windows: pip install tensorrt-rtx-cu13. On a Jetson, TensorRT is part of JetPack. There is "
            f"none for a Mac: run this target on another machine."
        )
    if "error" in built:
        raise StageError(f"no engine could be built from {onnx_file}: {built['error']}")
    return built


def _timing_caches() -> Path:
    """A folder in the store's own, so that it goes when the store goes. It holds times, never a result."""
    if named := os.environ.get("REPNETS_STORE"):
        return Path(named).expanduser().absolute() / "timing"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "repnets" / "timing"
