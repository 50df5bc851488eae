"""Read a file whole, within a limit."""

from pathlib import Path


def read(path: Path, most_bytes: int) -> bytes:
    """The content of a regular file.

    Args:
        path: of the file, or of a link to it.
        most_bytes: that it may have.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is a folder or a device, or is larger; the message says which, with `it` for the file.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is a folder" if path.is_dir() else "it is no regular file")
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"it has more than {most_bytes:,} bytes")
    return content
