"""Exported files as a user names them: which backend reads each, what it takes, and the images to feed it."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import backends
from pipeline.artifacts import documents
from pipeline.artifacts.export_result import Manifest, TensorFacts
from pipeline.artifacts.manifest import ImageSize, Preprocessing, height_and_width, image_size_of
from pipeline.backends import signatures
from pipeline.benchmark import inputs
from pipeline.data import transforms
from pipeline.errors import InputError

if TYPE_CHECKING:
    import numpy as np

FILES = """\
The suffix of a file selects its runtime:
  .pte          ExecuTorch
  .onnx         ONNX Runtime
  .xml          OpenVINO
  .engine       TensorRT, on the GPU that the engine was built for
  .mlpackage    {coreml}
  .pt2          PyTorch, eagerly: artifacts/<model>/fused.pt2, or any torch.export program
"""
"""What the suffix of a file means, for the help of commands that take files."""

_RANDOM_IMAGES = 16
_PIECE = 64  # images prepared at a time
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Exported:
    """A file that some runtime can read.

    Attributes:
        path: of the file or package.
        backend: name of the module in pipeline.backends that reads it.
        input_shape: (N, C, H, W), None where the file takes any size.
        example: sizes that it is known to take, None where that is unknown.
        classes: logits that it gives, None where it does not say or gives something else.
        manifest: what the manifest.json beside it says, None where none describes this very file.
        outputs: that it gives; empty for one that is not known, or of classes.
        takes_pixels, gives_probabilities: see `signatures.Signature`.
    """

    path: Path
    backend: str
    input_shape: signatures.Shape
    example: signatures.Shape
    classes: int | None
    manifest: Manifest | None
    outputs: tuple[TensorFacts, ...] = ()
    takes_pixels: bool = False
    gives_probabilities: bool = False

    @property
    def precision(self) -> str:
        """As the manifest says of the file, which may be the float baseline of int8; ``fp32`` without a manifest."""
        if not self.manifest:
            return "fp32"
        return next(form.precision for form in self.manifest.forms.values() if self.path.name in form.files)

    @property
    def data_files(self) -> tuple[Path, ...]:
        """The files beside it that hold a part of it, its weights say."""
        return backends.load(self.backend).data_files(self.path)


@dataclass(frozen=True)
class Images:
    """What files are fed.

    Attributes:
        described: in words.
        pieces: gives float32 (n, C, H, W) anew, piece by piece.
    """

    described: str
    pieces: "Callable[[], Iterator[np.ndarray]]"

    def one(self, index: int) -> "np.ndarray":
        """The image of that number, (C, H, W)."""
        for piece in self.pieces():
            if index < len(piece):
                return piece[index]
            index -= len(piece)
        raise IndexError("there are not so many images")


def open_file(path: Path) -> Exported:
    """Look at a file, without running it.

    Raises:
        InputError: it is missing, damaged, or of a kind that nothing here reads.
    """
    backend = backends.by_suffix(path)
    if not path.exists():
        raise InputError(f"{path} does not exist. Name an exported file: {', '.join(backends.suffixes())}.")
    signature, manifest = signatures.read(path), _manifest(path)
    if signature and signature.further:
        names = " and ".join(one.name or "one without a name" for one in signature.inputs)
        raise InputError(
            f"{path} takes several inputs, {names}, and only files of one image are compared and timed by their names. "
            "Compare it with its program by the stages check and bench of a target: snakemake targets/NAME/bench.json."
        )
    if signature is None:  # an engine
        shape = manifest.input.shape if manifest else (None,) * 4
        alone = manifest.outputs[0].shape if manifest and len(manifest.outputs) == 1 else ()
        classes = alone[1] if len(alone) == 2 else None
        return Exported(
            path, backend, shape, shape, classes, manifest, () if classes or not manifest else manifest.outputs
        )
    return Exported(
        path,
        backend,
        signature.input.shape,
        signature.example,
        signature.classes,
        manifest,
        () if signature.classes else _outputs(signature),
        signature.takes_pixels,
        signature.gives_probabilities,
    )


def _outputs(signature: signatures.Signature) -> tuple[TensorFacts, ...]:
    """As they are declared; empty where a size other than the batch is not."""
    shapes = [(one.shape[0] or 1, *one.shape[1:]) if one.shape else (None,) for one in signature.outputs]
    if any(None in shape for shape in shapes):
        return ()
    return tuple(
        TensorFacts(one.name or f"output_{place}", shape, one.dtype or "float32")
        for place, (one, shape) in enumerate(zip(signature.outputs, shapes, strict=True))
    )


def common_shape(files: Sequence[Exported], image_size: ImageSize | None = None) -> tuple[int, int, int, int]:
    """The input shape (N, C, H, W) that all files take: what one fixes, for all; else what a file is known to take.

    Args:
        files: at least one.
        image_size: pixels; default: as the files say.

    Raises:
        InputError: two files differ, in a size or in the number of classes; both are named. Nothing says which size.
    """
    for file in files[1:]:
        if None not in (file.classes, files[0].classes) and file.classes != files[0].classes:
            raise InputError(
                f"{files[0].path} gives {files[0].classes} classes and {file.path} {file.classes}, so they are not of "
                "the same network. Name two files of one network."
            )
    wanted = (None, None, *(height_and_width(image_size) if image_size else (None, None)))
    return tuple(_size(files, axis, wanted[axis]) for axis in range(4))  # type: ignore[return-value]


def images(
    files: Sequence[Exported], shape: tuple[int, ...], folder: Path | None = None, split: Path | None = None
) -> Images:
    """What to feed files that are to be compared: random numbers, or real images prepared as the manifests say.

    Args:
        files: their manifests give the preprocessing.
        shape: (N, C, H, W) that they take; N is of no account.
        folder: of images, however deep.
        split: a split.json of this pipeline; its validation images.

    Raises:
        InputError: there is no image; nothing says how images are prepared.
    """
    found = _images(files, shape, folder, split)
    return _in_whole_pixels(found, files, shape) if any(file.takes_pixels for file in files) else found


def _images(files: Sequence[Exported], shape: tuple[int, ...], folder: Path | None, split: Path | None) -> Images:
    if folder is None and split is None:
        return _random((_RANDOM_IMAGES, *shape[1:]))
    if split is not None:
        return _of_split(split, files, shape)
    return _of_folder(folder, _preprocessing(files, shape))


def _in_whole_pixels(found: Images, files: Sequence[Exported], shape: Sequence[int]) -> Images:
    preprocessing = _preprocessing(files, shape)

    def pieces() -> "Iterator[np.ndarray]":
        import torch

        return (transforms.whole(torch.from_numpy(piece), preprocessing).numpy() for piece in found.pieces())

    return Images(f"{found.described}, in whole pixels", pieces)


def _manifest(path: Path) -> Manifest | None:
    place = path.with_name(_MANIFEST)
    if not place.exists():
        return None
    found = documents.read(Manifest, place)
    if all(path.name not in form.files for form in found.forms.values()):
        return None
    if not found.describes(path):
        print(
            f"warning: {path} is not the file that {_MANIFEST} beside it describes, so that is not used.",
            file=sys.stderr,
        )
        return None
    return found


def _size(files: Sequence[Exported], axis: int, wanted: int | None) -> int:
    fixed = [file for file in files if file.input_shape[axis] is not None]
    for file in fixed:
        if file.input_shape[axis] != fixed[0].input_shape[axis]:
            raise InputError(
                f"{fixed[0].path} takes an input of {_shown(fixed[0].input_shape)} and {file.path} one of "
                f"{_shown(file.input_shape)}, so no input fits both. Export them for one input shape."
            )
    if fixed:
        size = fixed[0].input_shape[axis]
        if wanted not in (None, size):
            raise InputError(
                f"{fixed[0].path} takes an input of {_shown(fixed[0].input_shape)} alone. Leave out --image-size."
            )
        return size
    if axis == 0:
        return 1
    known = wanted or next((file.example[axis] for file in files if file.example[axis] is not None), None)
    if known is None:
        raise InputError(f"{files[0].path} takes images of any size, and nothing says which. Give --image-size.")
    return known


def _shown(shape: signatures.Shape) -> str:
    return " x ".join("any" if size is None else str(size) for size in shape)


def _random(shape: tuple[int, ...]) -> Images:
    return Images(f"{shape[0]} random normal images, seed {inputs.SEED}", lambda: iter([inputs.random_image(shape)]))


def _preprocessing(files: Sequence[Exported], shape: Sequence[int]) -> Preprocessing:
    for file in files:
        if file.manifest:
            return replace(file.manifest.preprocessing, image_size=image_size_of(shape))
    names = " nor ".join(str(file.path) for file in files)
    raise InputError(
        f"how images become the input is in {_MANIFEST}, which lies beside neither {names}. Put it there, give "
        "--split, or compare on random input."
    )


def _of_folder(folder: Path, preprocessing: Preprocessing) -> Images:
    from pipeline.data.folder_layout import files_in
    from pipeline.data.image_file import SUFFIXES, read

    paths = [path for path in files_in(folder) if path.suffix.lower() in SUFFIXES]
    if not paths:
        raise InputError(f"{folder} holds no image ({', '.join(SUFFIXES)}), so nothing could be compared.")

    def pieces() -> "Iterator[np.ndarray]":
        import torch

        for start in range(0, len(paths), _PIECE):
            prepared = [transforms.prepare(read(path)[None], preprocessing) for path in paths[start : start + _PIECE]]
            yield torch.cat(prepared).numpy()

    return Images(f"{len(paths)} image{'s' * (len(paths) > 1)} of {folder}", pieces)


def _of_split(place: Path, files: Sequence[Exported], shape: Sequence[int]) -> Images:
    from pipeline.data.splits import open_split

    split = open_split(place)
    try:
        preprocessing = _preprocessing(files, shape)
    except InputError:  # no manifest: the data set's own statistics will do to compare two files
        preprocessing = split.preprocessing(image_size_of(shape), color_order="gray" if shape[1] == 1 else "RGB")

    def pieces() -> "Iterator[np.ndarray]":
        return (images.numpy() for images, _ in split.batches("val", preprocessing, _PIECE))

    return Images(f"{split.size('val')} validation images of {place}", pieces)
