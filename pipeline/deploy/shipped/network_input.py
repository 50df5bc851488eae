"""An image as the network of this bundle takes it: the whole preprocessing. Needs Pillow.

It is within a pixel's rounding of what the network was trained with, since Pillow rounds a resized image to 8 bits.
"""

from __future__ import annotations

import struct

LETTERBOX_FILL = 114


def network_input(image, about: dict) -> bytes:
    """A Pillow image as one input of the network, of batch 1.

    Args:
        image: of any size and mode.
        about: bundle.json.
    """
    from PIL import Image

    how = about["preprocessing"]
    size, mean, std = how["image_size"], how["mean"], how["std"]
    height, width = size if isinstance(size, list) else (size, size)
    resample = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}[how["interpolation"]]
    if image.mode == "F":  # in [0, 1]; Pillow would cut such images off at 255, as the next ones
        image = image.point(lambda level: level * 255 + 0.5)
    elif image.mode.startswith("I"):  # 16-bit gray
        image = image.convert("I").point(lambda level: level * (1 / 257) + 0.5)
    image = image.convert("RGB")
    if how["color_order"] == "gray":
        image = image.convert("L")
    scaled = scaled_size(*image.size, width, height, how["resize"])
    if scaled != image.size:
        image = image.resize(scaled, resample)
    over = [side - wanted for side, wanted in zip(image.size, (width, height))]
    left, top = (round(more / 2) if more > 0 else -(-more // 2) for more in over)
    placed = Image.new(image.mode, (width, height), LETTERBOX_FILL if image.mode == "L" else (LETTERBOX_FILL,) * 3)
    placed.paste(image, (-left, -top))
    planes = placed.split()[:: -1 if how["color_order"] == "BGR" else 1]
    if about["input"]["dtype"] == "uint8":
        return b"".join(plane.tobytes() for plane in planes)
    levels = [[(level / 255 - m) / s for level in range(256)] for m, s in zip(mean, std)]
    values = [table[level] for table, plane in zip(levels, planes) for level in plane.tobytes()]
    return struct.pack(f"<{len(values)}f", *values)


def scaled_size(width: int, height: int, wide: int, high: int, resize: str) -> tuple[int, int]:
    """(width, height) that an image is resized to, before it is cut or padded to (wide, high)."""
    if resize == "stretch":
        return wide, high
    if resize == "letterbox":
        scale = min(high / height, wide / width)
        return max(1, round(width * scale)), max(1, round(height * scale))
    if high * width >= wide * height:
        return int(high * width / height), high
    return wide, int(wide * height / width)
