"""trtexec, NVIDIA's own program: TensorRT without its Python package. On a Jetson it is part of JetPack.

Written for TensorRT 10.3 to 11.4, by its options and the source that writes the files read here; it has not run here,
because there is no GPU. Versions differ in their defaults (CUDA graphs, spinning, transfers), so all options are given.
It runs on this machine or on a device, with the same calls.
"""

import math
import re
import shlex
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.backends.onnx import backend as onnx
from pipeline.backends.tensorrt import layer_info
from pipeline.backends.tensorrt.engines import engine_maker
from pipeline.backends.tensorrt.options import Options
from pipeline.devices import Device
from pipeline.devices.facts import here, tensorrt_version
from pipeline.devices.local import find_program
from pipeline.errors import InputError, StageError, quoted

if TYPE_CHECKING:
    import numpy as np

Inputs = Mapping[str, Sequence[int | None]]
"""The shape of each input by its name."""
STEADY = ("--useCudaGraph", "--useSpinWait", "--noDataTransfers")
"""One launch for the whole network, no sleep between runs, and no transfers in the latency."""

_ROUNDS = 10
_TRANSFERS = 50
_BUILD_SECONDS = 4 * 3600
_RUN_SECONDS = 600  # added to the seconds that are timed
_SUMMARY = re.compile(r"(?:\[[^\]]*\] \[\w\] )?(Latency|Enqueue Time|H2D Latency|GPU Compute Time|D2H Latency): (.*)")
_FIGURE = re.compile(r"(\w+(?:\([\d.]+%\))?) = (\d+(?:\.\d+)?(?:e[+-]?\d+)?|inf) ms", re.ASCII)
_VERDICT = re.compile(r"&&&& (\w{1,20}) TensorRT\.trtexec \[TensorRT v(\d{4,6})\](?: \[b(\d{1,6})\])?", re.ASCII)
_LINE = 2000  # characters of a line with figures


@dataclass(frozen=True)
class Place:
    """Where trtexec runs.

    Attributes:
        device: this machine, or another.
        program: trtexec's path there.
        folder: there, for its output files.
        version: TensorRT's.
    """

    device: Device
    program: str
    folder: str
    version: str

    def run(self, argv: Sequence[str], what: str, seconds: float = 0) -> str:
        """Run trtexec and return its output.

        Args:
            argv: its options.
            what: the file in question, for errors.
            seconds: that it is to time.

        Raises:
            StageError: it failed; with its own last errors.
            DeviceError: the link to the device was cut.
        """
        return run(self.device, self.program, argv, what, _RUN_SECONDS + seconds)

    def read(self, name: str) -> str:
        """Content of a file that trtexec wrote into the folder. ValueError if there is none."""
        done = self.device.run(["cat", f"{self.folder}/{name}"])
        if done.returncode:
            raise ValueError(f"no {name}")
        return done.stdout


@dataclass(frozen=True)
class Engine:
    """An engine that trtexec loads.

    Attributes:
        path: where trtexec runs.
        shape: the option that gives an open batch its shape; else none.
    """

    path: str
    shape: Sequence[str] = ()


def find() -> Path | None:
    """Path of trtexec, on PATH or in JetPack's folder; None if it is not installed."""
    found = find_program("trtexec")
    return Path(found) if found else None


def fingerprint() -> str | None:
    """Size and date of the program, which change with the installed TensorRT; trtexec is not run."""
    found = find()
    return f"trtexec of {found.stat().st_size} bytes, {found.stat().st_mtime_ns}" if found else None


def build_options(options: Options, inputs: Inputs) -> list[str]:
    """The options of trtexec for a build, without files. ``--stronglyTyped`` has no effect from version 11 on."""
    argv = ["--stronglyTyped", "--profilingVerbosity=detailed", "--skipInference"]
    if not options.tf32:
        argv.append("--noTF32")
    if options.builder_optimization_level is not None:
        argv.append(f"--builderOptimizationLevel={options.builder_optimization_level}")
    if options.workspace_mb is not None:
        argv.append(f"--memPoolSize=workspace:{options.workspace_mb}M")
    for bound, batch in zip(("min", "opt", "max"), options.batches() or (), strict=False):
        argv += shape_option(of_batch(inputs, batch), f"{bound}Shapes")
    return argv


def shape_option(inputs: Inputs, option: str = "shapes") -> list[str]:
    """The option that gives inputs of open batch their shapes."""
    shapes = [f"{name}:{'x'.join(map(str, shape))}" for name, shape in inputs.items()]
    return [f"--{option}={','.join(shapes)}"]


def of_batch(inputs: Inputs, batch: int) -> dict[str, tuple[int | None, ...]]:
    """The shapes of inputs at a batch."""
    return {name: (batch, *sizes) for name, (_, *sizes) in inputs.items()}


def build(onnx_file: Path, engine_file: Path, options: Options, timing_cache: str) -> str:
    """Build an engine for this machine's GPU.

    Args:
        onnx_file: valid; its input's first dimension is open where ``options.dynamic_batch`` is set.
        engine_file: where the engine goes.
        options: see there.
        timing_cache: a path in which ``{version}`` stands for TensorRT's: trtexec fails on another version's.

    Returns:
        TensorRT's version.

    Raises:
        StageError: trtexec failed; with its own last errors.
    """
    inputs = inputs_of(onnx_file)
    device, program = _here()
    if "{version}" in timing_cache:
        timing_cache = timing_cache.replace("{version}", version(run(device, program, ["--help"])))
    cache = Path(timing_cache)
    cache.parent.mkdir(parents=True, exist_ok=True)
    files = [f"--onnx={onnx_file}", f"--saveEngine={engine_file}", f"--timingCacheFile={cache}"]
    argv = [*files, *build_options(options, inputs)]
    return version(run(device, program, argv, str(onnx_file), _BUILD_SECONDS))


def time_files(
    files: Mapping[str, Path], image: "np.ndarray", *, warmup_seconds: float, min_runs: int, max_seconds: float
) -> dict[str, list[list[float]]]:
    """Time the forms of a network in turn on this machine; see `time_engines`.

    Args:
        files: the .onnx of each form, or its .engine; an engine that is not of this TensorRT is built anew
            from the .onnx beside it, for the batch of the image and otherwise by default options.
        image: float32 (N, 3, H, W); its shape alone counts, since trtexec makes its own data.
        warmup_seconds, min_runs, max_seconds: as there.

    Raises:
        InputError: a file is not an engine, or not valid ONNX.
        StageError: trtexec failed.
    """
    with _engines(files, image.shape) as (place, engines):
        return time_engines(place, engines, warmup_seconds=warmup_seconds, min_runs=min_runs, max_seconds=max_seconds)


def time_engines(
    place: Place, engines: Mapping[str, Engine], *, warmup_seconds: float, min_runs: int, max_seconds: float
) -> dict[str, list[list[float]]]:
    """Time engines in turn: rounds of one trtexec call an engine, short ones.

    Args:
        place: where trtexec runs.
        engines: by form.
        warmup_seconds: of each call. min_runs: of each form, all rounds together. max_seconds: for all the
            timed runs of all forms together; trtexec's own start and load come on top.

    Returns:
        By form, one list a round: what the GPU took for each inference, ms, transfers left out. Rounds hold
        as many runs as fit into their time, so their lengths differ.

    Raises:
        StageError: trtexec failed.
        DeviceError: the link to the device was cut.
    """
    seconds = max_seconds / (_ROUNDS * len(engines))
    rounds: dict[str, list[list[float]]] = {form: [] for form in engines}
    for _ in range(_ROUNDS):
        for form, engine in engines.items():
            rounds[form].append(
                time_engine(place, engine, warmup_seconds, seconds, iterations=math.ceil(min_runs / _ROUNDS))
            )
    return rounds


def time_engine(
    place: Place, engine: Engine, warmup_seconds: float, seconds: float, iterations: int = 1
) -> list[float]:
    """What the GPU took for each inference in one call of trtexec, ms, transfers left out.

    Raises:
        StageError, DeviceError: as `time_engines`.
    """
    argv = [
        *STEADY, f"--warmUp={math.ceil(warmup_seconds * 1000)}", f"--duration={seconds:.3f}",
        f"--iterations={iterations}", *engine.shape, f"--exportTimes={place.folder}/times.json",
    ]  # fmt: skip
    printed = place.run([f"--loadEngine={engine.path}", *argv], engine.path, warmup_seconds + seconds)
    try:
        return read_times(place.read("times.json"))
    except ValueError:
        # Its printed figures are of the same runs; of those the median is the best single one.
        median = read_summary(printed).get("GPU Compute Time", {}).get("median", 0)
        if 0 < median < layer_info.MOST_MS:
            return [median]
        raise StageError(
            f"trtexec ran {engine.path}, but gave no times. Run build_engine.sh by hand to see what it prints."
        ) from None


def transfer_ms(file: Path, image: "np.ndarray") -> dict[str, float]:
    """What it takes on this machine to bring an input to the GPU and its output back; see `transfers_ms`.

    Raises:
        InputError, StageError: as `time_files`.
    """
    with _engines({"file": file}, image.shape) as (place, engines):
        return transfers_ms(place, engines["file"])


def transfers_ms(place: Place, engine: Engine) -> dict[str, float]:
    """What it takes to bring an input to the GPU and its output back: medians, ms, of copies from pinned memory.

    Raises:
        StageError, DeviceError: as `time_engines`.
    """
    # Version 10 makes transfers by default, and does not know the option with which 11 makes them.
    asked = ["--includeDataTransfers"] if int(place.version.split(".")[0]) >= 11 else []
    steady = [option for option in STEADY if option != "--noDataTransfers"]
    argv = [*steady, *asked, "--warmUp=200", "--duration=0", f"--iterations={_TRANSFERS}", *engine.shape]
    place.run([f"--loadEngine={engine.path}", *argv, f"--exportTimes={place.folder}/transfers.json"], engine.path)
    try:
        text = place.read("transfers.json")
        found = {"host_to_device": read_times(text, "h2dMs"), "device_to_host": read_times(text, "d2hMs")}
    except ValueError as error:
        raise StageError(f"trtexec ran {engine.path}, but gave no times of its transfers ({error}).") from None
    return {way: statistics.median(taken) for way, taken in found.items()}


def profile(file: Path, image: "np.ndarray", runs: int) -> list[dict[str, Any]]:
    """Where the time of one inference goes on this machine; see `profile_engine`.

    Raises:
        InputError, StageError: as `time_files`.
    """
    with _engines({"file": file}, image.shape) as (place, engines):
        return profile_engine(place, engines["file"], runs)


def profile_engine(place: Place, engine: Engine, runs: int) -> list[dict[str, Any]]:
    """Where the time of one inference goes: ``name``, ``kind`` and ``ms`` (the median of the runs) of each layer.

    The sum is above the time of a whole inference: timing each layer keeps them from overlapping.

    Raises:
        StageError, DeviceError: as `time_engines`.
    """
    place.run(
        [
            f"--loadEngine={engine.path}", "--dumpProfile", "--separateProfileRun", "--profilingVerbosity=detailed",
            f"--exportProfile={place.folder}/profile.json", f"--exportLayerInfo={place.folder}/layers.json",
            "--useSpinWait", "--noDataTransfers", "--warmUp=200", "--duration=0", f"--iterations={runs}", *engine.shape,
        ],
        engine.path,
    )  # fmt: skip
    try:
        return layer_info.joined(read_profile(place.read("profile.json")), place.read("layers.json"))
    except ValueError as error:
        raise StageError(
            f"trtexec ran {engine.path}, but left no profile of it ({error}). Run it by hand to see what it prints: "
            f"trtexec --loadEngine={engine.path} --dumpProfile --separateProfileRun."
        ) from None


def read_times(text: str, what: str = "computeMs") -> list[float]:
    """What ``--exportTimes`` wrote: the GPU's ms for each inference, warm-up left out.

    Args:
        text: the file.
        what: ``computeMs``, or ``h2dMs`` and ``d2hMs`` for the transfers.

    Raises:
        ValueError: it is no such file, or holds no run, or one that took no time.
    """
    try:
        times = [layer_info.ms_of(run[what]) for run in layer_info.parsed(text)]
    except (KeyError, TypeError) as error:
        raise ValueError(f"no list of runs: {error!r}") from None
    if not times or 0 in times:
        raise ValueError("no run, or one without a time")
    return times


def read_profile(text: str) -> list[tuple[str, float]]:
    """What ``--exportProfile`` wrote: name and median ms of each layer, in the order of execution.

    Raises:
        ValueError: it is no such file, or holds no layer.
    """
    try:
        entries = [entry for entry in layer_info.parsed(text) if "name" in entry]
        layers = [(str(entry["name"]), layer_info.ms_of(entry["medianMs"])) for entry in entries]
    except (KeyError, TypeError) as error:
        raise ValueError(f"no list of layers: {error!r}") from None
    if not layers:
        raise ValueError("no layer")
    return layers


def read_summary(printed: str) -> dict[str, dict[str, float]]:
    """What trtexec prints of its figures, ms: ``{"GPU Compute Time": {"min", ..., "percentile(99%)"}, ...}``."""
    found = (_SUMMARY.match(line) for line in printed.splitlines() if len(line) < _LINE)
    return {line[1]: {name: float(value) for name, value in _FIGURE.findall(line[2])} for line in found if line}


def version(printed: str) -> str:
    """TensorRT's version, e.g. ``10.3.0`` or ``10.13.0.35``, of the line that trtexec begins and ends with.

    Raises:
        StageError: there is no such line.
    """
    verdicts = _VERDICT.findall(printed)
    if not verdicts:
        raise StageError(f"trtexec did not say its version; it said last: {quoted(printed[-200:])}")
    _, digits, built = verdicts[-1]
    return ".".join(filter(None, (tensorrt_version(digits), built)))


def inputs_of(onnx_file: Path) -> dict[str, tuple[int | None, ...]]:
    """The shape of each input of an ONNX file by its name; None for a dimension that it leaves open."""
    return {one.name: one.shape for one in onnx.signature(onnx_file).inputs}


def run(device: Device, program: str, argv: Sequence[str], what: str = "", seconds: float = _RUN_SECONDS) -> str:
    """Run trtexec; gives what it printed. See `Place.run`."""
    done = device.run(f"{shlex.join([program, *argv])} 2>&1", timeout=seconds)
    if done.returncode:
        about = f" on {what}" if what else ""
        raise StageError(f"trtexec ended with {done.returncode}{about}; it said: {last_errors(done.stdout)}")
    return done.stdout


def last_errors(printed: str) -> str:
    """The last errors in trtexec's output; if there are none, the end of the output."""
    errors = [quoted(line.partition("[E] ")[2]) for line in printed.splitlines() if "[E] " in line]
    return " | ".join(errors[-3:]) or " ".join(printed.split())[-300:] or "nothing"


@contextmanager
def _engines(files: Mapping[str, Path], shape: Sequence[int]) -> Iterator[tuple[Place, dict[str, Engine]]]:
    """Where trtexec runs, on this machine; and by form, an engine that it loads."""
    device, program = _here()
    mine = version(run(device, program, ["--help"]))
    with tempfile.TemporaryDirectory() as folder:
        engines = {}
        for form, file in files.items():
            inputs = inputs_of(file.with_suffix(".onnx"))
            engine = file.with_suffix(".engine")
            is_open = next(iter(inputs.values()))[0] is None
            if not _is_mine(engine, mine):
                engine = Path(folder, f"{form}.engine")
                options = Options.of_one_batch(shape[0]) if is_open else Options()
                build(file.with_suffix(".onnx"), engine, options, f"{folder}/build.timing")
            engines[form] = Engine(str(engine), shape_option(of_batch(inputs, shape[0])) if is_open else ())
        yield Place(device, program, folder, mine), engines


def _is_mine(engine: Path, mine: str) -> bool:
    try:
        maker, made_with = engine_maker(engine)
    except InputError:
        return False
    return maker == "TensorRT" and made_with.split(".")[:3] == mine.split(".")[:3]


def _here() -> tuple[Device, str]:
    program = find()
    if program is None:
        raise StageError("trtexec is not on this machine: install JetPack's or NVIDIA's TensorRT.")
    return here(), str(program)
