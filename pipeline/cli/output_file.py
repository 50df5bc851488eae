"""The file that a command writes: refused before the work where it cannot be, and there whole or not at all."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.artifacts.atomic import replacing
from pipeline.errors import InputError, shown


def require(output: Path, suffixes: Collection[str]) -> None:
    """Refuse an output of none of some suffixes, or in a folder that is not there.

    Raises:
        InputError: it is so.
    """
    if output.suffix not in suffixes:
        kinds = ", ".join(suffixes)
        raise InputError(f"{shown(output)} is none of {kinds}, so it is unclear how to write it. Rename it.")
    if not (place := output.absolute().parent).is_dir():
        raise InputError(f"there is no folder {shown(place)} to write {shown(output.name)} into. Make it first.")


@contextmanager
def writing(output: Path) -> Iterator[Path]:
    """A place to write the content to, which takes the place of the output at the end.

    Raises:
        InputError: it cannot be written.
    """
    try:
        with replacing(output) as fresh:
            yield fresh
    except OSError as error:
        raise InputError(f"{shown(output)} cannot be written: {error.strerror}. Name another place.") from None
