"""Run exported files in processes of their own, so that a runtime that aborts does not end the pipeline.

Some runtimes end the whole process on a file that they cannot read. So the functions here start
`python -m pipeline.backends.worker.server`, which opens the file and predicts or times, and raise a StageError if that
process dies. A runtime's number of threads applies to a whole process: it is set in the environment before anything is
loaded.

Arrays are .npy files in a temporary folder; requests and replies are one line of JSON each over the process's stdin and
stdout; the output of a runtime goes to a log, whose last lines are quoted in errors. The process may also be started on
a device (`remote`).
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline import backends, errors
from pipeline.backends.runtime import Runtime
from pipeline.backends.worker.process import Process, opened
from pipeline.backends.worker.remote import Remote
from pipeline.devices import transfer

if TYPE_CHECKING:
    import numpy as np

_CHUNK_BYTES = 64_000_000


@dataclass(frozen=True)
class Job:
    """An exported file, and what runs it.

    Attributes:
        backend: module under pipeline.backends, or the dotted name of one elsewhere.
        file: the exported file.
        on: the device that it was copied to; None for this machine.
    """

    backend: str
    file: Path
    on: Remote | None = None

    @property
    def place(self) -> str:
        """Path of the file for the process that opens it."""
        return str(self.file) if self.on is None else self.on.names[self.file]

    @property
    def runtime(self) -> Runtime:
        """What the backend's runtime can do, so that no process is started for what it cannot."""
        return backends.load_runtime(self.backend)


class Predict(Protocol):
    """Puts images through an exported file."""

    def __call__(
        self, images: "np.ndarray | Iterable[np.ndarray]", *, session: str = "check", batch: int = 1
    ) -> "np.ndarray":
        """Predict.

        Args:
            images: float32 (M, 3, H, W), or an iterable of such pieces where they do not fit into memory at once.
            session: how the file is opened: ``check``, the runtime that `check` uses; ``exact``, the same in float32
                arithmetic on the stored weights; ``own``, the target's own runtime.
            batch: N of the file's input. The last batch of each piece is padded with zeros, and its surplus cut.

        Returns:
            float32 (M, numbers), in the order of the images: all outputs of an image one after the other, of a
            classifier its logits.

        Raises:
            StageError: the runtime failed, or ended the process.
            InputError: the file cannot be used; there is no image.
        """


@contextmanager
def predictor(backend: str, file: Path, threads: int = 1) -> Iterator[Predict]:
    """Start a process for an exported file, in which it can be opened in several ways, one after the other.

    Args:
        backend: module under pipeline.backends, or the dotted name of one elsewhere.
        file: the exported file.
        threads: for the runtime.
    """
    import numpy as np

    with opened(backend, threads) as process:

        def run(images: "np.ndarray | Iterable[np.ndarray]", *, session: str = "check", batch: int = 1) -> "np.ndarray":
            numbers = []
            process.ask("open", file=str(file), session=session)
            for piece in _pieces(images, batch):
                process.give(piece)
                process.ask("predict", batch=batch)
                numbers.append(np.load(process.folder / "numbers.npy"))
            if not numbers:
                raise errors.InputError(f"{file}: there is no image to predict from; the validation split is empty.")
            return np.concatenate(numbers)

        yield run


def predict(
    backend: str,
    file: Path,
    images: "np.ndarray | Iterable[np.ndarray]",
    threads: int = 1,
    *,
    session: str = "check",
    batch: int = 1,
) -> "np.ndarray":
    """Put images through an exported file once; see `predictor` and `Predict`."""
    with predictor(backend, file, threads) as run:
        return run(images, session=session, batch=batch)


def outputs_by_layer(backend: str, file: Path, image: "np.ndarray", *, exact: bool = False) -> "dict[str, np.ndarray]":
    """The output of each operation of an exported file for one image.

    Args:
        backend: module under pipeline.backends, or the dotted name of one elsewhere, that offers this.
        file: the exported file.
        image: float32, of the file's input shape.
        exact: float32 arithmetic on the stored weights, instead of the file's own.

    Returns:
        float32 arrays in the order of execution, by the name of the program's node that each came from.

    Raises:
        StageError: the runtime failed, or ended the process.
        InputError: the file cannot be used.
    """
    import numpy as np

    with opened(backend, 1, image) as process:
        names = process.ask("layers", file=str(file), exact=exact)["names"]
        return {name: np.load(process.folder / f"layer{index}.npy") for index, name in enumerate(names)}


def transfer_ms(job: Job, image: "np.ndarray") -> dict[str, float] | None:
    """Time to copy one input to the device and its output back; None if the backend does not measure it.

    Args:
        job: the file.
        image: float32, of the file's input shape.

    Returns:
        ``host_to_device``, ``device_to_host``.

    Raises:
        StageError: the runtime failed, or ended the process.
    """
    if job.on is not None or job.runtime.transfer_ms is None:  # on a device, files run on the CPU
        return None
    with process_of(job, 1, image) as process:
        return process.ask("transfer", file=job.place)["ms"]


def profile(job: Job, image: "np.ndarray", threads: int, runs: int) -> list[dict[str, Any]] | None:
    """The profile of one inference; None if the backend has no profiler.

    Args:
        job: the file.
        image: float32, of the file's input shape.
        threads: for the runtime.
        runs: that each figure is the median of.

    Returns:
        What the backend's `profile` returns: ``name``, ``kind`` and ``ms`` of each operation, in their order.

    Raises:
        StageError: the runtime failed, or ended the process.
    """
    if job.runtime.profile is None:
        return None
    with process_of(job, threads, image) as process:
        return process.ask("profile", file=job.place, runs=runs)["layers"]


def trace(job: Job, image: "np.ndarray", threads: int, runs: int) -> bytes:
    """The event trace that a runner on a device writes.

    Raises:
        StageError, DeviceError: as `profile`.
    """
    with process_of(job, threads, image) as process:
        place = process.ask("trace", file=job.place, runs=runs)["trace"]
        transfer.pull(job.on.device, place, process.folder / "trace")
        return (process.folder / "trace").read_bytes()


def _pieces(images: "np.ndarray | Iterable[np.ndarray]", batch: int) -> "Iterator[np.ndarray]":
    import numpy as np

    for part in [images] if isinstance(images, np.ndarray) else images:
        if not len(part):
            continue
        rows = max(1, _CHUNK_BYTES // (part[0].size * 4) // batch) * batch
        for start in range(0, len(part), rows):
            yield part[start : start + rows]


def process_of(job: Job, threads: int, image: "np.ndarray") -> AbstractContextManager[Process]:
    return opened(job.backend, threads, image, job.on)
