"""build_engine.sh, which builds and times the engines on a device that has trtexec."""

from collections.abc import Mapping

from pipeline.backends.tensorrt import trtexec
from pipeline.backends.tensorrt.options import Options
from pipeline.devices.facts_script import JETPACK


def text(options: Options, inputs: Mapping[str, tuple[int, ...]]) -> str:
    """The script, with this target's options written out: versions of TensorRT differ in their defaults."""
    open_batch = options.batches() is not None
    build = trtexec.build_options(options, inputs)
    shape = trtexec.shape_option(inputs) if open_batch else []
    times = [*trtexec.STEADY, "--warmUp=500", "--duration=10", "--iterations=100", "--percentile=50,90,99", *shape]
    return _TEXT.replace("@BUILD@", _lines(build)).replace("@TIME@", _lines(times)).replace("@JETPACK@", JETPACK)


def _lines(options: list[str]) -> str:
    return " \\\n        ".join(options)


_TEXT = """\
#!/bin/sh
# Build a TensorRT engine from each ONNX file in this folder, for the GPU of the device that this runs
# on, and time it. An engine runs only on the GPU architecture and TensorRT version it was built for.
#
#   sh build_engine.sh          builds and times
#   sh build_engine.sh build    builds
#
# Needs trtexec: on a Jetson it is part of JetPack (@JETPACK@), elsewhere of TensorRT.
# Gives <form>.engine and <form>.times.json, a list with one entry a run: computeMs, latencyMs and more.
# *.timing keeps what the builder measured, so that a second build is quick and chooses the same; trtexec
# fails on that of another version, hence the version in its name.
# For steady figures on a Jetson, first: sudo nvpmodel -m 0 && sudo jetson_clocks
set -eu
cd "$(dirname "$0")"
PATH="$PATH:@JETPACK@"
command -v trtexec > /dev/null || {
    echo "error: trtexec is not on PATH; install JetPack's or NVIDIA's TensorRT" >&2
    exit 1
}
cache="build-v$(trtexec --help | sed -n 's/.*\\[TensorRT v\\([0-9]*\\)\\].*/\\1/p' | head -n 1).timing"

for onnx in *.onnx; do
    form="${onnx%.onnx}"
    # The ONNX file carries the precision, so the network is strongly typed and no precision is set here.
    trtexec --onnx="$onnx" --saveEngine="$form.engine.new" --timingCacheFile="$cache" \\
        @BUILD@
    mv "$form.engine.new" "$form.engine"
    [ "${1:-}" = build ] && continue
    trtexec --loadEngine="$form.engine" --exportTimes="$form.times.json" \\
        @TIME@
done
"""
