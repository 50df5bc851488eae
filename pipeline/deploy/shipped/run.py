#!/usr/bin/env python3
"""What the network of this bundle gives for image files. Needs what predict.py needs, and Pillow.

    python3 integration/run.py photo.jpg

It prints the shape and the range of each output; what they mean is for your own code. network_input.py beside this file
is the whole preprocessing.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1]


def main(paths: list[str]) -> None:
    from PIL import Image

    sys.path[:0] = [str(FOLDER), str(FOLDER / "integration")]
    from network_input import network_input
    from predict import Network

    about = json.loads((FOLDER / "bundle.json").read_text(encoding="utf-8"))
    network = Network()
    for path in paths:
        numbers = network(network_input(Image.open(path), about) * about["input"]["shape"][0])
        for output in about["outputs"]:
            count = math.prod(output["shape"])
            own, numbers = numbers[:count], numbers[count:]
            shape = " x ".join(map(str, output["shape"]))
            print(f"{path}: {output['name']}, {shape}, from {min(own):.4g} to {max(own):.4g}")


if __name__ == "__main__":
    main(sys.argv[1:])
