#!/usr/bin/env python3
"""Runs this bundle's .pte by ExecuTorch. Needs its Python package and torch: pip install executorch torch

    from predict import Network

    network = Network()
    outputs = network(open("golden/input0.bin", "rb").read())

What goes in is described in preprocessing.txt; integration/network_input.py makes it of an image.
"""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


class Unavailable(Exception):
    """The runtime is not on this device; says what to do."""


class Network:
    """The network, open. Call it with the bytes of one input; it gives a list of floats: all outputs, in order.

    Attributes:
        runtime, version: what runs it.
    """

    runtime = "ExecuTorch"

    def __init__(self, folder=FOLDER):
        about = json.loads((Path(folder) / "bundle.json").read_text(encoding="utf-8"))
        try:
            import torch
            from executorch.runtime import Runtime
        except ImportError as error:
            raise Unavailable(
                f"ExecuTorch's Python package cannot be imported here ({error}): pip install executorch torch"
            ) from None
        self.version = metadata.version("executorch")
        self._torch, self._shape = torch, about["input"]["shape"]
        self._program = Runtime.get().load_program(Path(folder) / about["file"])  # the method lives in it
        self._method = self._program.load_method("forward")

    def __call__(self, values: bytes) -> list[float]:
        image = self._torch.frombuffer(bytearray(values), dtype=self._torch.float32).reshape(self._shape)
        return [value for one in self._method.execute([image]) for value in one.flatten().tolist()]
