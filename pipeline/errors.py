"""What can go wrong, and the exit code that each kind of failure ends a stage with.

Every message says what happened, why, and how to mend it, in one short paragraph.
"""

import difflib
from collections.abc import Sequence


class InputError(Exception):
    """Something the user gave cannot be used: a config, a data set, a checkpoint, a file."""

    exit_code = 2


class GateError(Exception):
    """A comparison did not hold: verify or check found that a hop changed the network."""

    exit_code = 1


class StageError(Exception):
    """A tool or the machine failed: an exporter, a runtime, a full disk."""

    exit_code = 1


class DeviceError(Exception):
    """A device cannot be reached or used: a cut link, a refused key, a full disk, a command that does not end.

    Args:
        message: what, why and how to mend it.
        is_cut: the link broke in the middle, so that trying again may help.
    """

    exit_code = 1

    def __init__(self, message: str, *, is_cut: bool = False) -> None:
        super().__init__(message)
        self.is_cut = is_cut


def first_line(error: BaseException) -> str:
    """What the first cause of an error says: one line, without its full stop; its kind where it says nothing."""
    while error.__cause__ is not None:
        error = error.__cause__
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return said[:300].rstrip('". ')


def nearest(name: str, known: Sequence[str]) -> str:
    """'; did you mean X?' for the nearest of the known names, else the list of them."""
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean `{close[0]}`?" if close else f"; known: {', '.join(known)}."
