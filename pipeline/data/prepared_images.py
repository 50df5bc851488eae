"""Images of a split at one size, decoded, resized and cropped once: an array in the store that every stage maps.

The array holds what is left before `transforms.normalised`: float32 in [0, 1], since resizing gives fractions. Its key
is the digest of the split, which images, their size, how they are resized, whether they are gray, and the code: mean,
std and the order of the channels play no part, so all networks of one size share it. It takes 4 bytes a value: 600 MB
for 1,000 photographs at 224 x 224.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.artifacts import store
from pipeline.artifacts.manifest import Preprocessing
from pipeline.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch

Batches = Iterator[tuple["torch.Tensor", "torch.Tensor"]]


@dataclass(frozen=True)
class PreparedImages:
    """Images that only have to be normalised.

    Attributes:
        pixels: float32 (n, 1 or 3, height, width) in [0, 1], mapped from a file.
        targets: what is known of them, a row an image.
    """

    pixels: "torch.Tensor"
    targets: "torch.Tensor"


def prepare_once(
    split_digest: str, numbers: Sequence[int], preprocessing: Preprocessing, read: Callable[[], Batches]
) -> PreparedImages:
    """Images out of the store; read and put there where they are missing, or no longer what was put there.

    Args:
        split_digest: of the split.
        numbers: of the images, in order; at least one.
        preprocessing: size, interpolation, how it is resized, and whether to gray.
        read: gives the images in order and in batches, as `PreparedImages` holds them.

    Raises:
        InputError: an image cannot be read, or what lies in the store is no array of such images.
        StageError: the disk is full.
    """
    height, width = preprocessing.size

    def build(places: dict[str, Path], _scratch: Path) -> None:
        print(f"preparing {len(numbers)} images at {height} x {width} pixels, once for all stages", flush=True)
        _write(read(), len(numbers), places["pixels"], places["targets"])

    files = store.kept(
        "images",
        settings={
            "split": split_digest,
            "numbers": list(numbers),
            "size": [height, width],
            "interpolation": preprocessing.interpolation,
            "resize": preprocessing.resize,
            "gray": preprocessing.color_order == "gray",
        },
        outputs={"pixels": "pixels.npy", "targets": "targets.npy"},
        code=("pipeline.data.splits",),
        packages=("torch", "torchvision", "pillow", "numpy"),
        build=build,
    )
    return _mapped(files["pixels"], files["targets"], len(numbers), (height, width))


def _write(batches: Batches, count: int, pixels: Path, targets: Path) -> None:
    """Write as batches come. A file that is written, not mapped: a full disk then raises, and kills no process."""
    import numpy as np
    import torch
    from tqdm import tqdm

    seen = []
    with pixels.open("wb") as file, tqdm(total=count, unit="image", leave=False, disable=None) as bar:
        for images, wanted in batches:
            if not seen:
                header = {"descr": "<f4", "fortran_order": False, "shape": (count, *images.shape[1:])}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(images.contiguous().numpy())
            seen.append(wanted)
            bar.update(len(images))
    np.save(targets, torch.cat(seen).numpy())


def _mapped(pixels: Path, targets: Path, count: int, size: tuple[int, int]) -> PreparedImages:
    import torch

    shapes = [(count, channels, *size) for channels in (1, 3)]
    # copy on write: torch wants memory that it could write to, and the file stays as it is
    images = _array(pixels, ("float32",), shapes)
    known = _array(targets, ("int64", "float32"), [(count,), (count, ...)])
    return PreparedImages(torch.from_numpy(images), torch.from_numpy(known))


def _array(file: Path, dtypes: Sequence[str], shapes: Sequence[tuple[object, ...]]) -> "np.ndarray":
    """An array of one of some types and shapes; what comes after an axis `...` is not looked at."""
    import numpy as np

    try:
        array = np.load(file, mmap_mode="c", allow_pickle=False)
        holds = f"holds {array.dtype} {array.shape}"
        begins = (*array.shape[:1], ...)
        if array.dtype in dtypes and (array.shape in shapes or begins in shapes):
            return array
    except (OSError, EOFError, ValueError) as error:
        holds = f"cannot be read as an array ({error})"
    wanted = f"{' or '.join(dtypes)} {' or '.join(map(str, shapes))}"
    raise InputError(
        f"{file} {holds}, and must hold {wanted}: something else than this pipeline wrote it into the store. Delete "
        f"the folder {file.parents[1]} and run again."
    )
