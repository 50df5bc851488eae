#!/usr/bin/env python3
"""Runs this bundle's .xml and .bin by OpenVINO, on the CPU. Needs openvino: pip install openvino numpy

    from predict import Network

    network = Network()
    outputs = network(open("golden/input0.bin", "rb").read())

What goes in is described in preprocessing.txt; integration/network_input.py makes it of an image.
"""

from __future__ import annotations

import json
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


class Unavailable(Exception):
    """The runtime is not on this device; says what to do."""


class Network:
    """The network, open. Call it with the bytes of one input; it gives a list of floats: all outputs, in order.

    Attributes:
        runtime, version: what runs it.
    """

    runtime = "OpenVINO"

    def __init__(self, folder=FOLDER):
        about = json.loads((Path(folder) / "bundle.json").read_text(encoding="utf-8"))
        try:
            import numpy
            import openvino
        except ImportError as error:
            raise Unavailable(f"{error}: pip install openvino numpy") from None
        self.version = openvino.__version__
        self._numpy, self._shape = numpy, about["input"]["shape"]
        settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        model = openvino.Core().compile_model(str(Path(folder) / about["file"]), "CPU", settings)
        self._request = model.create_infer_request()

    def __call__(self, values: bytes) -> list[float]:
        pixels = self._numpy.frombuffer(values, dtype="<f4").reshape(self._shape)
        self._request.infer([pixels])
        return [float(value) for one in self._request.output_tensors for value in one.data.ravel()]
