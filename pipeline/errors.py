"""The kinds of failure, and the exit code of each.

Every message says what happened, why, and how to fix it, in one short paragraph.
"""

import difflib
import reprlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

QUOTED = 200
"""Characters that a message quotes of a value at most."""
MESSAGE = 1900
"""Characters of a whole message at most."""
_ALIKE = str.maketrans("oil", "011")
_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = QUOTED


class InputError(Exception):
    """An input cannot be used: a configuration, a data set, a checkpoint, a file."""

    exit_code = 2


class GateError(Exception):
    """A gate failed: verify or check found that a step changed the network."""

    exit_code = 1


class StageError(Exception):
    """A tool or the machine failed: an exporter, a runtime, a full disk."""

    exit_code = 1


class DeviceError(Exception):
    """A device cannot be reached or used: a cut link, a refused key, a full disk, a command that does not end.

    Args:
        message: what happened, why, and how to fix it.
        is_cut: the link was cut, so that trying again may help.
    """

    exit_code = 1

    def __init__(self, message: str, *, is_cut: bool = False) -> None:
        super().__init__(message)
        self.is_cut = is_cut


@contextmanager
def reading(file: object, remedy: str = "Copy it again or run the export again.") -> Iterator[None]:
    """What is read of a file in the block raises InputError where the file is damaged: a parser may raise anything."""
    try:
        yield
    except (InputError, GateError, StageError, DeviceError):
        raise
    except Exception as error:
        raise InputError(f"{shown(file)} is damaged: {first_line(error)}. {remedy}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's first cause, without its full stop.

    The name of the error's type is in front of a message of one word, such as the 101 of a KeyError, or in its place.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    kind = type(error).__name__
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), kind)
    text = text if " " in text or text == kind else f"{kind}: {text}"
    return quoted(text).rstrip('". ')


def quoted(value: object) -> str:
    """A value as a message quotes it: on one line, without control characters, at most 200 characters.

    The few first parts of a list or mapping are enough: all of one that holds itself many times do not fit into memory.
    """
    try:
        text = _BRIEF.repr(value) if isinstance(value, list | tuple | dict) else str(value)
    except ValueError:  # an integer of more digits than Python prints
        text = f"a {type(value).__name__} too long to show"
    text = shown(" ".join(text[:1000].split()))
    return text if len(text) <= QUOTED else f"{text[: QUOTED - 3]}..."


def shortened(text: str, most: int = MESSAGE) -> str:
    """A text without its middle where it is longer than so many characters: its end says how to mend it."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]} ... {text[5 - most // 2 :]}"


def shown(name: object) -> str:
    """A name from a file system as it can be printed: what is not UTF-8 or not printable is escaped."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in str(name))


def nearest(name: str, known: Sequence[str]) -> str:
    """'; did you mean X?' for the nearest of the known names, else the list of them.

    Characters that are taken for each other (0 and O, 1 and l) count as the same.
    """
    alike = {one.lower().translate(_ALIKE): one for one in reversed(known)}
    close = difflib.get_close_matches(str(name)[:QUOTED].lower().translate(_ALIKE), alike, n=1)
    if close:
        return f"; did you mean `{alike[close[0]]}`?"
    return f"; known: {', '.join(known)}." if known else "; there is none."
