#!/usr/bin/env python3
"""The class of image files and its probability, by the network of this bundle. Needs what predict.py needs, and Pillow.

    python3 integration/classify.py photo.jpg

network_input.py beside this file is the whole preprocessing.
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
    labels = about["preprocessing"]["classes"]
    network = Network()
    for path in paths:
        values = network_input(Image.open(path), about) * about["input"]["shape"][0]
        found = probabilities(network(values)[: len(labels)])
        print(f"{path}: {labels[found.index(max(found))]} ({max(found):.1%})")


def probabilities(outputs: list[float]) -> list[float]:
    """Of logits; what sums to one already is taken as it is."""
    if min(outputs) >= 0 and abs(sum(outputs) - 1) < 1e-2:
        return outputs
    powers = [math.exp(one - max(outputs)) for one in outputs]
    return [power / sum(powers) for power in powers]


if __name__ == "__main__":
    main(sys.argv[1:])
