"""What is fed to files that are timed."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


SEED = 0


def random_image(shape: tuple[int, ...]) -> "np.ndarray":
    """One random normal input of that shape, always the same; latencies do not depend on what it shows."""
    import numpy as np

    return np.random.default_rng(SEED).standard_normal(shape, dtype=np.float32)
