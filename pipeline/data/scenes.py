"""Scenes of several digits on a canvas, made by a seed from those that scikit-learn carries: boxes and masks are known.

For detection and segmentation with nothing downloaded. No digit of a training scene is in one for validation.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

SIDE = 64  # pixels
TRAIN, VAL = 1600, 320  # scenes
MOST = 5
"""Digits of a scene; at least one."""
_SIDES = (14, 27)  # of a digit, pixels: at least, and below
_INK = 96  # level from which a pixel is part of a digit
_OF_TRAIN = 0.8


def make(digits: "np.ndarray", labels: "np.ndarray", seed: int = 0) -> tuple["np.ndarray", ...]:
    """Scenes, those for training first.

    Args:
        digits: uint8 (n, 8, 8).
        labels: int64 (n,).
        seed: of all that is drawn.

    Returns:
        uint8 (scenes, 64, 64) pixels; uint8 (scenes, 64, 64) masks, 0 being the background and 1 to 10 the digits;
        float32 (scenes, 5, 5) boxes, rows of class, x1, y1, x2, y2 in pixels, class -1 where there is no more.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    border = int(len(digits) * _OF_TRAIN)
    known = [(digits[:border], labels[:border])] * TRAIN + [(digits[border:], labels[border:])] * VAL
    return tuple(map(np.stack, zip(*(_scene(*one, random) for one in known), strict=True)))


def _scene(
    digits: "np.ndarray", labels: "np.ndarray", random: "np.random.Generator"
) -> tuple["np.ndarray", "np.ndarray", "np.ndarray"]:
    import numpy as np

    canvas = _resized(random.integers(0, 90, (4, 4)).astype(np.uint8), SIDE) + random.uniform(0, 25, (SIDE, SIDE))
    mask = np.zeros((SIDE, SIDE), np.uint8)
    boxes = np.zeros((MOST, 5), np.float32)
    boxes[:, 0] = -1
    taken = 0
    for _ in range(random.integers(1, MOST + 1)):
        number, side = random.integers(len(digits)), int(random.integers(*_SIDES))
        top, left = random.integers(0, SIDE - side + 1, 2)
        ink = _resized(digits[number], side)
        shape = ink >= _INK
        around = mask[max(0, top - 1) : top + side + 1, max(0, left - 1) : left + side + 1]
        if around.any() or not shape.any():  # digits do not touch
            continue
        place = (slice(top, top + side), slice(left, left + side))
        canvas[place] = np.maximum(canvas[place], ink * random.uniform(0.6, 1))
        mask[place][shape] = labels[number] + 1
        rows, columns = np.flatnonzero(shape.any(1)), np.flatnonzero(shape.any(0))
        boxes[taken] = labels[number], left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1
        taken += 1
    return np.rint(canvas).clip(0, 255).astype(np.uint8), mask, boxes


def _resized(levels: "np.ndarray", side: int) -> "np.ndarray":
    """uint8 (h, w) as float (side, side)."""
    import numpy as np
    from PIL import Image

    return np.asarray(Image.fromarray(levels).resize((side, side), Image.Resampling.BICUBIC), dtype=np.float64)
