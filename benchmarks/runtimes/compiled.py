"""torch.compile, with its defaults: a saved program (.pt2), compiled by the C++ compiler of this machine."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.artifacts.manifest import Unavailable
from pipeline.backends.runtime import Runtime, Session
from pipeline.models import program_file, programs

if TYPE_CHECKING:
    import numpy as np

PACKAGES = ("torch",)


def unavailable() -> Unavailable | None:
    """None where there is a C++ compiler."""
    if os.environ.get("CXX") or any(map(shutil.which, ("g++", "clang++", "c++"))):
        return None
    return Unavailable("torch.compile needs a C++ compiler.", "Install one: apt install g++, or set CXX.")


def open_session(file: Path, threads: int) -> Session:
    """The first call compiles."""
    import torch

    torch.set_num_threads(threads)
    program, _ = program_file.read(file)
    compiled = torch.compile(programs.as_module(program))

    def run(images: "np.ndarray") -> "list[np.ndarray]":
        with torch.inference_mode():
            return [compiled(torch.from_numpy(images)).numpy()]

    return run


RUNTIME = Runtime(open_session=open_session)
