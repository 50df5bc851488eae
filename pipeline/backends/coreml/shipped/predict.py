#!/usr/bin/env python3
"""Runs this bundle's .mlpackage by Core ML, on a Mac. Needs coremltools: pip install coremltools

    from predict import Network

    network = Network()
    outputs = network(open("golden/input0.bin", "rb").read())

What goes in is described in preprocessing.txt; integration/network_input.py makes it of an image. In an app, use
integration/Classifier.swift. It has run on no Mac yet.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


class Unavailable(Exception):
    """The runtime is not on this device; says what to do."""


class Network:
    """The network, open. Call it with the bytes of one input; it gives a list of floats: all outputs, in order.

    Attributes:
        runtime, version: what runs it.
    """

    runtime = "Core ML"

    def __init__(self, folder=FOLDER):
        about = json.loads((Path(folder) / "bundle.json").read_text(encoding="utf-8"))
        if platform.system() != "Darwin":
            raise Unavailable(
                f"Core ML runs on Apple's systems alone, and this is {platform.system()}: run this on a Mac, or see "
                "README.md for Xcode"
            )
        self._takes_pixels = about["input"]["dtype"] == "uint8"
        try:
            import coremltools
            import numpy

            if self._takes_pixels:
                import PIL.Image  # noqa: F401
        except ImportError as error:
            raise Unavailable(f"{error}: pip install coremltools pillow") from None
        self.version = f"macOS {platform.mac_ver()[0]}, coremltools {coremltools.__version__}"
        self._about, self._numpy = about, numpy
        self._model = coremltools.models.MLModel(str(Path(folder) / about["file"]))

    def __call__(self, values: bytes) -> list[float]:
        taken, given = self._about["input"], self._about["output"]
        pixels = self._numpy.frombuffer(values, dtype=taken["dtype"]).reshape(taken["shape"]).copy()
        if self._takes_pixels:
            from PIL import Image

            planes = pixels[0][::-1] if self._about["preprocessing"]["color_order"] == "BGR" else pixels[0]
            array = planes[0] if len(planes) == 1 else planes.transpose(1, 2, 0)
            pixels = Image.fromarray(self._numpy.ascontiguousarray(array))
        answer = self._model.predict({taken["name"]: pixels})
        if given["kind"] == "probabilities":
            return [float(answer[given["name"]][label]) for label in self._about["preprocessing"]["classes"]]
        names = [one["name"] for one in self._about.get("outputs") or [given]]
        return [float(value) for name in names for value in self._numpy.asarray(answer[name]).ravel()]
