"""What goes into a bundle of TensorRT's: the ONNX file and the script that builds the engine on the device."""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.artifacts.export_result import TensorFacts
from pipeline.backends.base import BundleParts
from pipeline.backends.tensorrt import trtexec
from pipeline.backends.tensorrt.options import Options
from pipeline.devices.facts_script import JETPACK
from pipeline.errors import InputError

_TIMING_CACHE = re.compile(r"build-v\d+\.timing")


def describe(
    options: Mapping[str, Any], taken: Sequence[TensorFacts], engine: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The options of trtexec for the self-test, as in build_engine.sh; and the maker and GPU of an included engine."""
    chosen = Options.of(options)
    inputs = {one.name: one.shape for one in taken}
    shape = trtexec.shape_option(inputs) if chosen.batches() else []
    build = trtexec.build_options(chosen, inputs)
    facts: dict[str, Any] = {"trtexec": {"build": build, "run": shape, "jetpack": JETPACK}}
    if engine:
        facts["engine"] = {key: engine[key] for key in ("maker", "version", "compute_capabilities")}
    return facts


def hold_engine(facts: Mapping[str, Any], name: str, is_there: bool) -> None:
    """An engine is included only if full TensorRT built it.

    Raises:
        InputError: it is another's, or not there.
    """
    if not is_there or facts.get("maker") != "TensorRT":
        made = f"it is TensorRT-RTX's ({facts['version']}), for PCs" if is_there else "there is none"
        raise InputError(
            f"bundle.include_engine: an engine goes along only where TensorRT built it on a device of the very kind "
            f"that it is for, and {made}. Leave it out: build_engine.sh builds it on the device."
        )


def timing_cache(options: Mapping[str, Any]) -> dict[str, Path]:
    """The timing cache that the target names, where it is one that build_engine.sh wrote and will look for."""
    named = options.get("timing_cache")
    path = Path(named).expanduser() if named else None
    if path is None or not path.is_file():
        return {}
    if not _TIMING_CACHE.fullmatch(path.name):
        print(
            f"warning: {path} is left out: of which TensorRT it is cannot be told, and trtexec fails on that of "
            "another. Name it as build_engine.sh does on the device, build-v<version>.timing.",
            file=sys.stderr,
        )
        return {}
    return {path.name: path}


BUNDLE = BundleParts(
    folder=Path(__file__).with_name("shipped"),
    needs="`trtexec`, which a Jetson has with JetPack",
    files={"predict.py": "predict.py", "integration/classifier.cpp": "classifier.cpp"},
    time_limit_s=1800,  # trtexec builds an engine first, which takes minutes on a Jetson
    machine_suffix=".engine",
    hold_machine_file=hold_engine,
    beside=timing_cache,
    describe=describe,
)
