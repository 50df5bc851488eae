"""One module or folder a runtime family: what each writes, counts and runs. `onnx` and `pytorch` serve as references.

A backend has

    FILES, EXTRAS               names of what it writes for each form, `{form}.pte` say, and beside them
    PACKAGES                    distributions whose versions shape the files; RUN_BY, where others run them
    CHECKED_BY                  the runtime that `check` runs the file by on this machine, None where there is none
    export(program, files, spec) -> facts
    census(file)                operations of a file by type
    host(), unavailable()       what of this machine the files depend on; why the runtime cannot be used here
    open_session(file, threads) -> session                  the target's own runtime: what `bench` times
    open_check_session(file, threads) -> session            what `check` runs: the file in its own arithmetic

where a session takes float32 (N, 3, H, W) and gives float32 logits (N, classes). And, where it can,

    SERVED_BY                                               the module that a device's own Python runs a file with: it
                                                            has `open_session`, and imports little of this project
    on_device(device, files, script, shape), versions(device)   instead, where a program of the device's own builds and
                                                            times them
    FLOAT_BESIDE_INT8                                       ``fp16`` where the numbers of an int8 file that are not int8
                                                            are stored and computed so; default: ``fp32``
    inspect(files, facts, spec)                             raises where what the files say of themselves is not what
                                                            the manifest does
    open_exact_session(file, threads) -> session            the same weights, as they are stored, in float32 arithmetic
    stored_weights(file, precision, weights) -> weights     for precisions that compress weights alone, each layer's
                                                            float32 weights as the file stores them; raises where one
                                                            is farther from the network's own, `weights`, by the
                                                            layer's name, than the precision rounds. Others: empty
    outputs_by_layer(file, image, exact) -> {name: array}   what each operation of the file gives, in the order of
                                                            execution, by the name of the program's node it came from
    open_clock(file, threads, image) -> () -> ms            `bench` times with this where it is there: run once, timed
                                                            by the device itself, transfers left out
    time_files(files, image, *, warmup_seconds, min_runs, max_seconds) -> {form: rounds of ms}
                                                            where the runtime takes the time in a way of its own, in
                                                            turn, as many rounds of each form; or None: as usual
    transfer_ms(file, image) -> {"host_to_device", "device_to_host"}    of one input and one output, ms
    profile(file, threads, image, runs) -> [{"name", "kind", "ms"}]     where the time of one inference goes: the
                                                            operations in the order of execution, medians of the runs
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import MappingProxyType, ModuleType

from pipeline.errors import InputError, nearest

SUFFIXES = MappingProxyType(
    {".pte": "executorch", ".onnx": "onnx", ".engine": "tensorrt", ".mlpackage": "coreml", ".pt2": "pytorch"}
)
"""The backend that reads a file, by the file's suffix."""

RUNTIMES = MappingProxyType(
    {
        "executorch": "ExecuTorch",
        "onnx": "ONNX Runtime",
        "tensorrt": "TensorRT",
        "coreml": "Core ML",
        "pytorch": "PyTorch",
    }
)
"""What `open_session` of each backend opens a file with, in words."""


def module_name(name: str) -> str:
    """Dotted name of a backend's module: of a name in `SUFFIXES`; the dotted name of a module elsewhere is its own."""
    return name if "." in name else f"{__name__}.{name}.backend"


def load(name: str) -> ModuleType:
    """The module of a backend: a name in `SUFFIXES`, or the dotted name of a module elsewhere."""
    return import_module(module_name(name))


def packages_of_figures(name: str) -> list[str]:
    """Distributions whose versions shape what is measured with a backend: those of its files, and what runs them."""
    backend = load(name)
    return [*backend.PACKAGES, *getattr(backend, "RUN_BY", ())]


def by_suffix(file: Path) -> str:
    """Name of the backend that reads an exported file. InputError where there is none, with those that are known."""
    if file.suffix not in SUFFIXES:
        what = f"the suffix `{file.suffix}`" if file.suffix else "no suffix"
        raise InputError(f"{file} has {what}, so it is unclear what runs it{nearest(file.suffix, tuple(SUFFIXES))}")
    return SUFFIXES[file.suffix]


def file_names(name: str, forms: Sequence[str]) -> list[str]:
    """Names of all the files that a backend writes for these forms of a network, manifest.json left out."""
    backend = load(name)
    return [file.format(form=form) for form in forms for file in backend.FILES] + list(backend.EXTRAS)
