"""A runtime for the tests of the worker: a linear map of an image's channel means, or a process that dies.

A file is a .npy of float32 (channels, classes), or a word that says how to misbehave.
"""

import ctypes
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.backends.runtime import Runtime
from pipeline.errors import InputError

BATCH = 4


def open_session(file: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    os.write(1, b"a runtime that prints to the standard output\n")
    word = file.read_bytes()
    if word in _DEATHS:
        os.write(2, b"last words of the runtime\n")
        _DEATHS[word]()
    if word == b"refuses":
        raise InputError("this file is refused, with a reason.")
    if word == b"threads":
        return lambda image: np.array([[threads, int(os.environ["OMP_NUM_THREADS"])]], dtype=np.float32)
    if word == b"imports":
        import runtimes.slow

        return lambda image: image[: runtimes.slow.ROWS]
    if word == b"notes its process":
        _note(file.with_name("processes"), f"{os.getpid()}:{threads}:{os.environ['OMP_NUM_THREADS']}")
        return lambda image: image
    if word == b"notes its runs":
        return lambda image: _note(file.with_name("runs"), file.stem)
    if word == b"hog":
        np.ones(100_000_000, dtype=np.uint8)
        return lambda image: image
    weights = np.load(file)
    return lambda image: _run(weights, image)


def open_check_session(file: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    session = open_session(file, threads)
    return lambda image: -session(image)


def open_exact_session(file: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    session = open_session(file, threads)
    return lambda image: 2 * session(image)


def outputs_by_layer(file: Path, image: np.ndarray, *, exact: bool = False) -> dict[str, np.ndarray]:
    return {"mean": image.mean((2, 3)), "product": open_session(file, 1)(image)}


RUNTIME = Runtime(
    open_session=open_session,
    open_check_session=open_check_session,
    open_exact_session=open_exact_session,
    outputs_by_layer=outputs_by_layer,
)


def _note(place: Path, text: str) -> None:
    with place.open("a") as file:
        file.write(f"{text}\n")


def _run(weights: np.ndarray, image: np.ndarray) -> np.ndarray:
    if image.shape[0] != BATCH or not image.flags.c_contiguous or image.dtype != np.float32:
        raise RuntimeError(f"fed {image.dtype} {image.shape}, but the file takes a batch of {BATCH}")
    if np.isinf(image).any():
        os.abort()
    return image.mean((2, 3)) @ weights


_DEATHS = {
    b"abort": os.abort,
    b"segfault": lambda: ctypes.string_at(0),
    b"memory": lambda: os.kill(os.getpid(), signal.SIGKILL),
    b"exit": lambda: os._exit(3),
}
