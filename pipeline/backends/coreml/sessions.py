"""Sessions of the evaluator: normalized images in, logits out, like those of the target's own runtime."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts.samples import fitting
from pipeline.backends.coreml import evaluator
from pipeline.backends.coreml.evaluator import Program
from pipeline.backends.runtime import Session
from pipeline.errors import InputError, reading

if TYPE_CHECKING:
    import numpy as np


def open_session(file: Path, threads: int, exact: bool) -> Session:
    """A session of the backends' contract, see `running.open_session`.

    An image that the package takes as such has whole numbers in the program's own arithmetic; where it is
    exact, nothing is rounded.

    Args:
        file: an .mlpackage.
        threads: for torch.
        exact: see `evaluator.load`.

    Raises:
        InputError: the package is damaged.
        StageError: an operation that the evaluator does not know.
    """
    import numpy as np
    import torch

    torch.set_num_threads(threads)
    program = evaluator.load(file, exact)
    with reading(file):
        feed = _feeder(program)
    description = program.description

    def run(images: "np.ndarray") -> "list[np.ndarray]":
        answer = evaluator.run(program, feed(images))
        if not description.predictedFeatureName:
            return [answer[name].astype(np.float32) for name in program.outputs]
        found = answer[description.predictedProbabilitiesName]
        classes = _preprocessing(program)["classes"]
        return [torch.tensor([[found[label] for label in classes]]).log().numpy()]

    return run


def outputs_by_layer(file: Path, image: "np.ndarray", exact: bool = False) -> dict[str, "np.ndarray"]:
    """Load a package and run `evaluator.layers` on a normalized image, float32 (N, 3, H, W)."""
    program = evaluator.load(file, exact)
    return evaluator.layers(program, _feeder(program)(image))


def _feeder(program: Program) -> Callable[["np.ndarray"], dict[str, "np.ndarray"]]:
    """From normalized images, or samples of several inputs, to what the program takes, by name."""
    import numpy as np

    kinds = {one.name: one.type for one in program.description.input}
    if len(kinds) != 1:
        shapes = [tuple(kind.multiArrayType.shape) for kind in kinds.values()]
        return lambda samples: dict(zip(kinds, fitting(samples, shapes, program.file), strict=True))
    ((name, _),) = program.inputs.items()
    image = kinds[name].imageType if kinds[name].WhichOneof("Type") == "imageType" else None
    if image is None:
        return lambda images: {name: images}
    about = _preprocessing(program)
    mean, std = (np.array(about[key], dtype=np.float64)[:, None, None] for key in ("mean", "std"))
    # a package of this project takes its channels in the order of the network
    is_reversed = image.ColorSpace.Name(image.colorSpace) == "BGR" and about.get("color_order") != "BGR"

    def feed(images: "np.ndarray") -> dict[str, "np.ndarray"]:
        pixels = (images * std + mean) * 255  # float64: what is lost here counts 1 / std times in the network
        pixels = pixels if program.exact else np.clip(np.rint(pixels), 0, 255)
        return {name: pixels[:, ::-1] if is_reversed else pixels}

    return feed


def _preprocessing(program: Program) -> dict[str, Any]:
    about = program.description.metadata.userDefined["preprocessing"]
    if not about:
        raise InputError(
            f"{program.file} takes an image or gives labels, but does not say how: its metadata has no "
            f"`preprocessing`. Export it with this project."
        )
    return json.loads(about)
