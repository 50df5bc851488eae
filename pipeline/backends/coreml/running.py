"""Core ML itself, which runs on Apple's systems alone."""

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.backends.coreml import packages
from pipeline.backends.noise import quiet
from pipeline.errors import StageError
from pipeline.manifest import Unavailable

if TYPE_CHECKING:
    import numpy as np


def unavailable() -> Unavailable | None:
    """None on a Mac; Apple ships Core ML for no other system that a pipeline runs on."""
    if platform.system() == "Darwin":
        return None
    return Unavailable(
        f"Core ML runs on Apple's systems alone, and this is {platform.system()}.",
        "Run this target's bench on a Mac from the same checkout, or open the package in Xcode and use its "
        "Performance tab.",
    )


def open_session(file: Path, threads: int) -> "Callable[[np.ndarray], np.ndarray]":
    """Load a package into Core ML, on a Mac. Written from Apple's documentation: it has not run on one yet.

    Args:
        file: an .mlpackage of this backend.
        threads: cannot be set: Core ML chooses processors and threads by itself.

    Returns:
        float32 (N, 3, H, W) -> float32 (N, classes). Where the package takes an image, the normalized
        input is turned back into one; where it is a classifier, the logarithm of the probabilities comes
        out, which differs from the logits by one number a row.

    Raises:
        InputError: the file is not an ML program.
        StageError: Core ML cannot load it, or this is not a Mac.
    """
    description = packages.read(file).description
    if missing := unavailable():
        raise StageError(f"{file} cannot be run: {missing.reason} {missing.remedy}")
    with quiet():
        import coremltools
        import numpy as np

        try:
            model = coremltools.models.MLModel(str(file))
        except Exception as error:
            raise StageError(
                f"Core ML cannot load {file}: {error}. Its system may be older than the package's."
            ) from error
    name, output = description.input[0].name, description.output[0].name
    about = json.loads(description.metadata.userDefined["preprocessing"])
    takes_image = description.input[0].type.WhichOneof("Type") == "imageType"

    def run(images: "np.ndarray") -> "np.ndarray":
        answer = model.predict({name: _as_image(images[0], about) if takes_image else images})
        if not description.predictedFeatureName:
            return np.asarray(answer[output], dtype=np.float32)
        found = answer[description.predictedProbabilitiesName]
        return np.log(np.array([[found[label] for label in about["classes"]]], dtype=np.float32))

    return run


def _as_image(normalized: "np.ndarray", about: dict[str, Any]) -> Any:
    import numpy as np
    from PIL import Image

    mean, std = (np.array(about[key], dtype=np.float32)[:, None, None] for key in ("mean", "std"))
    pixels = np.clip(np.rint((normalized * std + mean) * 255), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels.transpose(1, 2, 0))
