"""Core ML's own runtime, which runs only on Apple's systems."""

import json
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts.manifest import Unavailable
from pipeline.artifacts.samples import cut
from pipeline.backends.coreml import library, packages
from pipeline.backends.runtime import Session
from pipeline.errors import StageError
from pipeline.quiet import quiet

if TYPE_CHECKING:
    import numpy as np

HOW: Mapping[str, str] = {"compute_units": "ALL", "device": "mac", "development_team": ""}
"""What a package notes of how it is to be run, and what holds where it notes nothing. See `options.Options`."""
_UNITS = {"MLCPUComputeDevice": "CPU", "MLGPUComputeDevice": "GPU", "MLNeuralEngineComputeDevice": "NeuralEngine"}


def unavailable() -> Unavailable | None:
    """None on a Mac; Apple ships Core ML for no other system that a pipeline runs on."""
    if platform.system() == "Darwin":
        return None
    return Unavailable(
        f"Core ML runs on Apple's systems alone, and this is {platform.system()}.",
        "Run this target's bench on a Mac from the same checkout, or open the package in Xcode and use its "
        "Performance tab.",
    )


def require(file: Path) -> None:
    """Let nothing pass that wants Core ML where it is not.

    Raises:
        StageError: this is not a Mac.
    """
    if missing := unavailable():
        raise StageError(f"{file} cannot be run: {missing.reason} {missing.remedy}")


def how(description: Any) -> dict[str, str]:
    """How a package is to be run, from the `description` of its specification: the keys of `HOW`."""
    noted = description.metadata.userDefined
    return {name: noted.get(name, default) for name, default in HOW.items()}


def load(file: Path, *, is_run_here: bool = True) -> Any:
    """A package as a `coremltools.models.MLModel`, on the compute units that it notes.

    Args:
        file: an .mlpackage of this backend.
        is_run_here: load it into Core ML as well; without, it is for a connected device.

    Raises:
        InputError: the file is not an ML program.
        StageError: Core ML cannot load it, or this is not a Mac.
    """
    description = packages.read(file).description
    require(file)
    with quiet():
        coremltools = library.load()

        units = coremltools.ComputeUnit[how(description)["compute_units"]]
        try:
            return coremltools.models.MLModel(str(file), compute_units=units, skip_model_load=not is_run_here)
        except Exception as error:
            raise StageError(
                f"Core ML cannot load {file}: {error}. Its system may be older than the package's."
            ) from error


def open_session(file: Path, threads: int) -> Session:
    """Load a package into Core ML, on a Mac. Written from Apple's documentation: it has not run on one yet.

    Args:
        file: an .mlpackage of this backend.
        threads: cannot be set: Core ML chooses processors and threads by itself.

    Returns:
        A session. Where the package takes an image, the normalized input is turned back into one; where it is a
        classifier, the logarithm of the probabilities comes out, which differs from the logits by one number a row.

    Raises:
        InputError: the file is not an ML program.
        StageError: Core ML cannot load it, or this is not a Mac.
    """
    model = load(file)
    import numpy as np

    description = packages.read(file).description
    outputs, feed = [one.name for one in description.output], feeder(description)
    classes = json.loads(description.metadata.userDefined["preprocessing"])["classes"]

    def run(images: "np.ndarray") -> "list[np.ndarray]":
        answer = model.predict(feed(images))
        if not description.predictedFeatureName:
            return [np.asarray(answer[name], dtype=np.float32) for name in outputs]
        found = answer[description.predictedProbabilitiesName]
        return [np.log(np.array([[found[label] for label in classes]], dtype=np.float32))]

    return run


def feeder(description: Any) -> "Callable[[np.ndarray], dict[str, Any]]":
    """From normalized images, float32 (N, 3, H, W), or samples, to what `MLModel.predict` of a package takes."""
    if len(description.input) > 1:
        shapes = [tuple(one.type.multiArrayType.shape) for one in description.input]
        return lambda samples: dict(zip([one.name for one in description.input], cut(samples, shapes), strict=True))
    name = description.input[0].name
    about = json.loads(description.metadata.userDefined["preprocessing"])
    takes_image = description.input[0].type.WhichOneof("Type") == "imageType"
    return lambda images: {name: _as_image(images[0], about) if takes_image else images}


def kind_of(operator: str) -> str:
    """`conv` for `ios16.conv`: Core ML puts the version of the operation in front."""
    return operator.rpartition(".")[2]


def unit_of(usage: Any) -> str | None:
    """The preferred unit of an `MLComputePlanDeviceUsage`, by the name of its class; None where there is none."""
    if usage is None:
        return None
    name = type(usage.preferred_compute_device).__name__
    return _UNITS.get(name, name)


def _as_image(normalized: "np.ndarray", about: dict[str, Any]) -> Any:
    import numpy as np
    from PIL import Image

    mean, std = (np.array(about[key], dtype=np.float32)[:, None, None] for key in ("mean", "std"))
    pixels = np.clip(np.rint((normalized * std + mean) * 255), 0, 255).astype(np.uint8)
    if len(pixels) == 1:
        return Image.fromarray(pixels[0])
    planes = pixels[::-1] if about.get("color_order") == "BGR" else pixels  # Core ML brings an RGB image in order
    return Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))
