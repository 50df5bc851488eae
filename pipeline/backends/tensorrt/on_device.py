"""TensorRT on a device with only trtexec: build_engine.sh builds the engines there, then they are timed.

The builder's measurements (the timing cache) stay in the device's own folder of this project, by TensorRT's version,
so that a second build is quick and chooses the same kernels.
"""

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.backends.tensorrt import trtexec
from pipeline.devices import Device, transfer
from pipeline.devices.facts_script import JETPACK
from pipeline.errors import DeviceError, StageError, quoted

_BUILD_SECONDS = 4 * 3600
_FIND = f'PATH="$PATH:{JETPACK}"; command -v trtexec'


@dataclass(frozen=True)
class Remote:
    """Engines that were built on a device, by form; see `trtexec` for what each function gives."""

    place: trtexec.Place
    engines: Mapping[str, trtexec.Engine]

    @property
    def versions(self) -> dict[str, str]:
        """As `versions` of this module."""
        return {"tensorrt": self.place.version}

    def time_files(self, *, warmup_seconds: float, min_runs: int, max_seconds: float) -> dict[str, list[list[float]]]:
        """`trtexec.time_engines`."""
        return trtexec.time_engines(
            self.place, self.engines, warmup_seconds=warmup_seconds, min_runs=min_runs, max_seconds=max_seconds
        )

    def time_alone(self, form: str, seconds: float) -> list[float]:
        """`trtexec.time_engine`, without a warm-up."""
        return trtexec.time_engine(self.place, self.engines[form], 0, seconds)

    def transfer_ms(self, form: str) -> dict[str, float]:
        """`trtexec.transfers_ms`."""
        return trtexec.transfers_ms(self.place, self.engines[form])

    def profile(self, form: str, runs: int) -> list[dict[str, Any]]:
        """`trtexec.profile_engine`."""
        return trtexec.profile_engine(self.place, self.engines[form], runs)


def versions(device: Device) -> dict[str, str | None]:
    """``tensorrt``: the version of the device's trtexec.

    Raises:
        DeviceError: the device cannot be reached, has no trtexec, or one that is built for another machine.
    """
    return {"tensorrt": _version(device, _find(device))}


@contextmanager
def on_device(device: Device, files: Mapping[str, Path], script: Path, shape: tuple[int, ...]) -> Iterator[Remote]:
    """Build engines on a device; all but the timing cache goes again at the end.

    Args:
        device: where.
        files: the .onnx of each form.
        script: build_engine.sh, with the target's options written out.
        shape: (N, 3, H, W) of the image, or of a batch of samples.

    Raises:
        DeviceError: the device cannot be reached or is full, or has no trtexec.
        StageError: the build failed; with trtexec's own last errors.
        InputError: a file is not valid ONNX.
    """
    program = _find(device)
    found, cache = _version(device, program), shlex.quote(f"{device.home}/timing")
    inputs = {form: trtexec.inputs_of(file) for form, file in files.items()}
    with device.scratch() as folder:
        for form, file in files.items():
            transfer.push(device, file, f"{folder}/{form}.onnx")
        transfer.push(device, script, f"{folder}/build_engine.sh")
        line = (
            f"mkdir -p {cache} && cp {cache}/*.timing {folder}/ 2> /dev/null; "
            f'PATH="$PATH:${{0%/*}}" sh {folder}/build_engine.sh build 2>&1 && cp {folder}/*.timing {cache}/'
        )
        done = device.run(["sh", "-c", line, program], timeout=_BUILD_SECONDS)
        if done.returncode:
            said = trtexec.last_errors(done.stdout + done.stderr)
            raise StageError(
                f"the engines could not be built on {device.name} by TensorRT {found} (exit code {done.returncode}); "
                f"it said: {said}. Copy the .onnx files and build_engine.sh there and run it by hand to see all of it."
            )
        engines = {}
        for form, own in inputs.items():
            is_open = next(iter(own.values()))[0] is None
            shapes = trtexec.shape_option(trtexec.of_batch(own, shape[0])) if is_open else ()
            engines[form] = trtexec.Engine(f"{folder}/{form}.engine", shapes)
        yield Remote(trtexec.Place(device, program, folder, found), engines)


def _find(device: Device) -> str:
    found = device.run(_FIND).stdout.strip()
    if not found:
        raise DeviceError(
            f"{device.name} has no trtexec, which builds and times the engines there: it is neither on PATH nor in "
            f"{JETPACK}. On a Jetson it comes with JetPack (sudo apt-get install nvidia-jetpack), elsewhere "
            "with NVIDIA's TensorRT."
        )
    return found


def _version(device: Device, program: str) -> str:
    try:
        return trtexec.version(trtexec.run(device, program, ["--help"]))
    except StageError as error:
        raise DeviceError(
            f"{program} on {device.name} ({quoted(device.run(['uname', '-m']).stdout)}) cannot be run: {error} It may "
            "be built for another machine, or its libraries may be missing; run it there by hand with --help."
        ) from None
