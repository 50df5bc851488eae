#!/bin/sh
# Build the runner on the device that it is for: sh build_runner.sh EXECUTORCH RUNNER
#
# EXECUTORCH is the folder `executorch` of ExecuTorch's wheel: installed, or unpacked without anything else of Python:
#   python3 -m pip download --no-deps executorch==1.5.1 && unzip -q executorch-*.whl
# RUNNER is where the program goes. It finds the wheel's libraries by their path, so leave them there.
set -eu
[ $# = 2 ] || {
    echo "usage: sh build_runner.sh EXECUTORCH RUNNER" >&2
    exit 2
}
wheel="$(cd "$1" && pwd)"
[ -f "$wheel/lib/libexecutorch.so" ] || {
    echo "error: $wheel has no lib/libexecutorch.so; name the folder executorch of ExecuTorch's wheel, 1.5 or later" >&2
    exit 1
}
version="$(sed -n 's/^__version__ = "\([0-9.]*\).*/\1/p' "$wheel/version.py")"
"${CXX:-g++}" -O2 -std=c++17 -w -DC10_USING_CUSTOM_GENERATED_MACROS "-DEXECUTORCH_VERSION=\"$version\"" \
    -I"$wheel/include" -I"$wheel/include/executorch/runtime/core/portable_type/c10" \
    "$(dirname "$0")/runner.cpp" -o "$2" -L"$wheel/lib" "-Wl,-rpath,$wheel/lib" -Wl,--no-as-needed \
    -lexecutorch -lexecutorch_backend_xnnpack -lexecutorch_threadpool -lexecutorch_kernels_optimized -lexecutorch_etdump
"$2" --version
