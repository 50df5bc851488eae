"""Inspect engine files, and the GPU that is to run them, without TensorRT and without loading the engine."""

import ctypes
import re
import struct
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.artifacts.manifest import ExportSpec
from pipeline.errors import InputError

MAKERS = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
"""Python package -> the name of what it is."""

_TAGS = {b"ftrt": "TensorRT", b"vtrt": "TensorRT-RTX"}
_HEADER_BYTES = 28  # a tag, the size of the whole at 16, and at 24 four numbers of a version


def engine_maker(file: Path) -> tuple[str, str]:
    """Who built an engine, ``TensorRT`` or ``TensorRT-RTX``, and its version; read from its header alone.

    Where the version stands is known from NVIDIA's trtexec, which reads it there as well.

    Raises:
        InputError: the file is missing, not an engine, or cut short.
    """
    try:
        with file.open("rb") as opened:
            header = opened.read(_HEADER_BYTES)
        size = file.stat().st_size
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}. Run the export again.") from None
    if header[:4] not in _TAGS or len(header) < _HEADER_BYTES:
        raise InputError(f"{file} is not a TensorRT engine: it starts with {header[:4]!r}. Run the export again.")
    (whole,) = struct.unpack_from("<Q", header, 16)
    if size < whole:
        raise InputError(
            f"{file} is cut short: it has {size} bytes, and its header says {whole}. Copy it again or run the "
            f"export again."
        )
    return _TAGS[header[:4]], ".".join(str(number) for number in header[24:28])


def check_engine(file: Path, maker: str, version: str | None = None) -> str:
    """Hold an engine against the runtime that is to load it, before anything is loaded.

    Args:
        file: the engine.
        maker: ``TensorRT`` or ``TensorRT-RTX``; neither loads the other's engines.
        version: of the runtime, of as many numbers as it tells, ``10.3.0`` or ``10.3.0.30``; None: any.

    Returns:
        The engine's own version, of four numbers.

    Raises:
        InputError: the file is not an engine, or is one of another maker or version.
    """
    made_by, made_with = engine_maker(file)
    if made_by != maker:
        raise InputError(
            f"{file} was built by {made_by} {made_with}, and {maker} is to load it, which reads none but its own "
            f"engines. Build it on this machine: run the export here, or `sh build_engine.sh` beside the .onnx file."
        )
    told = [int(number) % 256 for number in re.findall(r"\d+", version or "")[:4]]  # the header has a byte for each
    if told != [int(number) for number in made_with.split(".")][: len(told)]:
        raise InputError(
            f"{file} was built by {maker} {made_with}, and this is {version}: an engine runs on the version that "
            f"built it alone. Build it again: run the export here, or `sh build_engine.sh` beside the .onnx file."
        )
    return made_with


def inspect(files: Sequence[Path], facts: Mapping[str, Any], spec: ExportSpec) -> None:
    """Hold the engine among exported files against the maker and version that the manifest names.

    Raises:
        InputError: it is not an engine, cut short, or of another maker or version.
    """
    for file in files:
        if file.suffix == ".engine":
            check_engine(file, facts["maker"], facts["version"])


def compute_capability() -> str | None:
    """Of the first NVIDIA GPU, e.g. ``8.7``, asked of the driver; None without one."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    asked = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # COMPUTE_CAPABILITY_MAJOR
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)  # COMPUTE_CAPABILITY_MINOR
    )
    return None if asked else f"{major.value}.{minor.value}"


def python_runtime() -> str | None:
    """The Python package that runs engines on this machine's GPU: full TensorRT first; None where none can.

    torch holds the buffers, so it has to have CUDA. A package that is there but whose library is not counts
    as missing.
    """
    capability = compute_capability()
    if capability is None or not torch_has_cuda():
        return None
    for name in MAKERS:
        if find_spec(name) is None:
            continue
        try:
            trt = import_module(name)
        except (ImportError, OSError):
            continue
        if name == "tensorrt" or capability in rtx_capabilities(trt):
            return name
    return None


def torch_has_cuda() -> bool:
    """Whether this torch runs on NVIDIA GPUs, told by the library that it would load: to import it takes seconds."""
    torch = find_spec("torch")
    library = "torch_cuda.dll" if sys.platform == "win32" else "libtorch_cuda.so"
    return torch is not None and Path(torch.origin).with_name("lib").joinpath(library).exists()


def rtx_capabilities(trt: object) -> dict[str, object]:
    """What TensorRT-RTX, given as its module, builds for: e.g. ``"8.9"``, and its own name of each."""
    members = trt.ComputeCapability.__members__
    return {f"{name[2:-1]}.{name[-1]}": value for name, value in members.items() if name.startswith("SM")}
