#!/usr/bin/env python3
"""The class of image files, by the network of this bundle. Needs what predict.py needs, and Pillow.

    python3 integration/classify.py photo.jpg

network_input.py beside this file is the whole preprocessing.
"""

from __future__ import annotations

import json
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
        outputs = network(values)[: len(labels)]
        print(f"{path}: {labels[outputs.index(max(outputs))]}")


if __name__ == "__main__":
    main(sys.argv[1:])
