"""Write a file or folder that appears at its path whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(place: Path) -> Iterator[Path]:
    """A temporary path beside a file or folder to write to; at the end it replaces the file or folder.

    If the block raises, the file or folder stays as it was, and the temporary path is removed. A file never replaces a
    folder.
    """
    fresh = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield fresh
        if fresh.is_dir() and place.is_dir():  # a folder that holds files cannot be replaced in one step
            old = place.with_name(f"{fresh.name}.old")
            os.replace(place, old)
            os.replace(fresh, place)
            shutil.rmtree(old)
        else:
            os.replace(fresh, place)
    finally:
        if fresh.is_dir():
            shutil.rmtree(fresh)
        else:
            fresh.unlink(missing_ok=True)
