#!/usr/bin/env python3
"""Runs this bundle's network by TensorRT's own program trtexec, which a Jetson has with JetPack. It needs no package.

    from predict import Network

    network = Network()
    outputs = network(open("golden/input0.bin", "rb").read())

It runs the .engine beside the .onnx, which build_engine.sh makes; without one it builds one for itself, in a temporary
folder, which takes from seconds to minutes. Each call starts trtexec: it is for tests; an app does as
integration/classifier.cpp. What goes in is described in preprocessing.txt. It has run on no GPU yet.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


class Unavailable(Exception):
    """The runtime is not on this device; says what to do."""


class Network:
    """The network, open. Call it with the bytes of one input; it gives a list of floats: all outputs, in order.

    Attributes:
        runtime, version: what runs it.
    """

    runtime = "TensorRT"

    def __init__(self, folder=FOLDER):
        self._about = json.loads((Path(folder) / "bundle.json").read_text(encoding="utf-8"))
        found = shutil.which("trtexec") or shutil.which("trtexec", path=self._about["facts"]["trtexec"]["jetpack"])
        if found is None:
            raise Unavailable(
                "trtexec is not on PATH, nor where JetPack puts it: install JetPack's or NVIDIA's TensorRT. (Where "
                "ONNX Runtime is installed, `python3 selftest.py --onnxruntime` tests the ONNX file by it instead.)"
            )
        self._trtexec = found
        said = subprocess.run([found, "--help"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout
        version = re.search(r"\[TensorRT v(\d+)\]", said.decode(errors="replace"))
        digits = int(version.group(1)) if version else 0
        self.version = f"{digits // 10000}.{digits // 100 % 100}.{digits % 100}" if version else None
        # version 11 leaves transfers out by default, and 10 does not know the option that includes them
        self._transfers = ["--includeDataTransfers"] if digits >= 110000 else []
        self._folder = tempfile.TemporaryDirectory()
        onnx = Path(folder) / self._about["file"]
        self._engine = onnx.with_suffix(".engine")
        if not self._engine.is_file():
            self._engine = Path(self._folder.name, "own.engine")
            self._run([f"--onnx={onnx}", f"--saveEngine={self._engine}", *self._about["facts"]["trtexec"]["build"]])

    def __call__(self, values: bytes) -> list[float]:
        taken, given = Path(self._folder.name, "input.bin"), Path(self._folder.name, "output.json")
        taken.write_bytes(values)
        once = [
            "--iterations=1",
            "--warmUp=0",
            "--duration=0",
            *self._transfers,
            *self._about["facts"]["trtexec"]["run"],
        ]
        name = self._about["input"]["name"]
        files = [f"--loadEngine={self._engine}", f"--loadInputs={name}:{taken.name}", f"--exportOutput={given}"]
        self._run([*files, *once])
        outputs = {one["name"]: one["values"] for one in json.loads(given.read_text())}
        return [float(value) for name in names_of_outputs(self._about) for value in outputs[name]]

    def _run(self, argv):
        done = subprocess.run(
            [self._trtexec, *argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=self._folder.name
        )
        if done.returncode:
            lines = done.stdout.decode(errors="replace").splitlines()
            errors = [line.partition("[E] ")[2] for line in lines if "[E] " in line] or lines
            raise RuntimeError(f"trtexec ended with {done.returncode}: {' | '.join(errors[-3:])[:500]}")


class OnnxRuntime:
    """The ONNX file by ONNX Runtime on the CPU, where there is no TensorRT: it proves the file, and not TensorRT."""

    runtime = "ONNX Runtime (stands in for TensorRT)"

    def __init__(self, folder=FOLDER):
        about = json.loads((Path(folder) / "bundle.json").read_text(encoding="utf-8"))
        try:
            import numpy
            import onnxruntime
        except ImportError as error:
            raise Unavailable(f"ONNX Runtime cannot be imported here ({error}): pip install onnxruntime") from None
        self.version = onnxruntime.__version__
        self._about, self._numpy = about, numpy
        self._session = onnxruntime.InferenceSession(
            str(Path(folder) / about["file"]), providers=["CPUExecutionProvider"]
        )

    def __call__(self, values: bytes) -> list[float]:
        taken = self._about["input"]
        image = self._numpy.frombuffer(values, dtype="<f4").reshape(taken["shape"])
        answers = self._session.run(names_of_outputs(self._about), {taken["name"]: image})
        return [float(value) for one in answers for value in one.ravel()]


def names_of_outputs(about: dict) -> list[str]:
    """In the order of the golden outputs; `about` is bundle.json."""
    return [one["name"] for one in about.get("outputs") or [about["output"]]]
