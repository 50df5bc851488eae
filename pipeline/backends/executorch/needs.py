"""Requirements of ExecuTorch on this machine and on devices."""

from collections.abc import Mapping

from pipeline.artifacts.manifest import is_within, version_numbers
from pipeline.backends.base import Can, Requirement, cannot
from pipeline.backends.worker import remote
from pipeline.devices.facts import Inventory

REQUIREMENTS = (Requirement("executorch", "writes and runs .pte; quantizes to int8", "build", ("executorch", "int8")),)

RUNNER_HELP = """\
A runner is a small program that runs a .pte where no Python with executorch is; `runner:` in target.yaml names it.
  Linux, on the device (x86_64 or aarch64; sudo apt-get install g++ unzip), from the wheel's own C++ libraries:
    python3 -m pip download --no-deps executorch=={version} && unzip -q executorch-*.whl -d wheel
    sh build_runner.sh wheel/executorch ~/runner     build_runner.sh and runner.cpp are in pipeline/devices/
  Android, on this machine, with the NDK in $ANDROID_NDK (after ExecuTorch's own scripts; nobody has run it yet):
    git clone --branch v{version} --recurse-submodules --shallow-submodules https://github.com/pytorch/executorch
    cmake -S executorch -B out -DCMAKE_TOOLCHAIN_FILE=$ANDROID_NDK/build/cmake/android.toolchain.cmake \\
      -DANDROID_ABI=arm64-v8a -DANDROID_PLATFORM=android-26 -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX=out \\
      -DEXECUTORCH_BUILD_XNNPACK=ON -DEXECUTORCH_BUILD_KERNELS_OPTIMIZED=ON -DEXECUTORCH_BUILD_DEVTOOLS=ON \\
      -DEXECUTORCH_BUILD_EXTENSION_MODULE=ON -DEXECUTORCH_BUILD_EXTENSION_TENSOR=ON \\
      -DEXECUTORCH_BUILD_EXTENSION_DATA_LOADER=ON -DEXECUTORCH_BUILD_EXTENSION_FLAT_TENSOR=ON \\
      -DEXECUTORCH_BUILD_EXTENSION_NAMED_DATA_MAP=ON -DEXECUTORCH_ENABLE_EVENT_TRACER=ON
    cmake --build out -j --target install            then compile runner.cpp with the NDK's clang++ against out/"""

_WHEELS = ("x86_64", "aarch64", "arm64")  # that executorch has wheels for, by uname's names


def can_run_on(device: Inventory, wanted: Mapping[str, str]) -> Can:
    """See `base.Backend`: by the device's Python, or by a runner."""
    wanted, version = wanted.get("executorch", ""), device.packages.get("executorch")
    if version is not None and is_within(version, wanted):
        return Can(True, f"by Python, executorch {version}")
    if device.machine.is_android:
        return cannot("no runner", "A phone has no Python.", "Build the runner; see below.")
    if device.machine.architecture not in _WHEELS:
        why = f"There is no wheel of executorch for {device.machine.architecture}."
        return cannot(
            "no runtime", why, f"Use a 64-bit system ({', '.join(_WHEELS)}), or build ExecuTorch and the runner there."
        )
    how = f'On the device: python3 -m pip install "executorch{wanted}" torch; or build the runner, see below.'
    if version is not None:
        return cannot("other version", f"Its executorch is {version}, and {wanted} is needed.", how)
    if device.python is None:
        return cannot("no runtime", "There is no Python 3.", how)
    if version_numbers(device.python) < version_numbers(remote.OLDEST_PYTHON):
        why = f"Its Python is {device.python}, and executorch needs {remote.OLDEST_PYTHON}."
        return cannot("no runtime", why, "Install a later Python there, and name it by --python; or build the runner.")
    return cannot("no runtime", f"Its Python {device.python} has no executorch.", how)
