#!/usr/bin/env python3
"""The class of image files, by the network of this bundle. Needs what predict.py needs, and Pillow.

    python3 integration/classify.py photo.jpg

`network_input` is the whole preprocessing, of one image; it is within a pixel's rounding of what the network was
trained with, since Pillow rounds a resized image to 8 bits.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1]


def network_input(image, about: dict) -> bytes:
    """A Pillow image as one input of the network, of batch 1.

    Args:
        image: of any size and mode.
        about: bundle.json.
    """
    from PIL import Image

    how = about["preprocessing"]
    size, mean, std = how["image_size"], how["mean"], how["std"]
    resample = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}[how["interpolation"]]
    if image.mode == "F":  # in [0, 1]; Pillow would cut such images off at 255, as the next ones
        image = image.point(lambda level: level * 255 + 0.5)
    elif image.mode.startswith("I"):  # 16-bit gray
        image = image.convert("I").point(lambda level: level * (1 / 257) + 0.5)
    image = image.convert("RGB")
    short = min(image.size)
    if short != size:
        image = image.resize([int(size * side / short) for side in image.size], resample)
    left, top = (round((side - size) / 2) for side in image.size)
    planes = image.crop((left, top, left + size, top + size)).split()
    if about["input"]["dtype"] == "uint8":
        return b"".join(plane.tobytes() for plane in planes)
    levels = [[(level / 255 - m) / s for level in range(256)] for m, s in zip(mean, std)]
    values = [table[level] for table, plane in zip(levels, planes) for level in plane.tobytes()]
    return struct.pack(f"<{len(values)}f", *values)


def main(paths: list[str]) -> None:
    from PIL import Image

    sys.path.insert(0, str(FOLDER))
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
