"""Shell lines for a device, such that no process or temporary folder there outlives the link.

A command on a device runs beside a feeder process that reads the link's stdin to its end. The end comes when the host
closes it or dies, or the link is cut; then the feeder kills the command and its child processes. Input of known length
is passed on first, so that a command sees the end of its input while the link lasts. A temporary folder belongs to a
process on the device that waits for the same end and then removes the folder.

The lines are POSIX sh with `head -c`, `mktemp`, `tar` and `sha256sum` (or `shasum`), as in BusyBox and Android.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

from pipeline.errors import InputError

SHORT_SECONDS = 60
"""Timeout of a short command."""

# $PPID of a child is the feeder itself, which must end with the command. A command may close its input before the link
# ends: further input is then discarded, and the feeder still waits for the end. After the input the feeder executes
# another program, so that no shell keeps its end of the pipe open, whose end the command waits for.
_SERVED = "cat && kill -s KILL 0; cat > /dev/null; kill -s KILL 0"
_BOUNDED = "{head}exec sh -c 'cat; kill -s KILL 0' > /dev/null"
_BESIDE = (
    "exec 4>&2 2> /dev/null; {{ sh -c 'echo $PPID'; {feed}; }} 4>&- | {{ read -r feeder; "
    'sh -c {command} 2>&4 4>&-; code=$?; kill -s KILL "$feeder"; [ "$code" -eq 255 ] && code=254; exit "$code"; }}'
)

SCRATCH = """\
t=${TMPDIR:-/tmp}
[ -d "$t" ] && [ -w "$t" ] || t=/data/local/tmp
for old in "$t"/repnets-scratch-*; do
    pid=${old##*/repnets-scratch-}
    [ -d "$old" ] && [ -O "$old" ] && ! kill -0 "${pid%%-*}" 2> /dev/null && rm -rf "$old"
done
trap '' HUP INT TERM PIPE
umask 077
d=$(mktemp -d "$t/repnets-scratch-$$-XXXXXX") || exit 73
echo "$d"
cat > /dev/null 2>&1
rm -rf "$d" || { sleep 1; rm -rf "$d"; }
"""

NO_DIGESTS, NO_SCRATCH = 77, 76
VERIFY = (
    "if command -v sha256sum > /dev/null; then sha256sum -c -; "
    f"elif command -v shasum > /dev/null; then shasum -a 256 -c -; else exit {NO_DIGESTS}; fi"
)


@dataclass(frozen=True)
class Completed:
    """The result of a command.

    Attributes:
        returncode: its exit code, 128 and more for a signal, never 255.
        stdout, stderr: its output.
    """

    returncode: int
    stdout: str
    stderr: str


def served(command: Sequence[str] | str) -> str:
    """A line for a command that reads the link's input as it arrives, and is killed at its end."""
    return _BESIDE.format(feed=_SERVED, command=_quoted(command))


def bounded(command: Sequence[str] | str, size: int) -> str:
    """A line for a command that reads `size` bytes of the link's input, and is killed when the link ends."""
    head = f"head -c {size}; " if size else ""
    return _BESIDE.format(feed=_BOUNDED.format(head=head), command=_quoted(command))


def within(folder: str | None) -> str:
    """The beginning of a line that writes below a temporary folder: it fails if the folder was removed."""
    return f"[ -d {path(folder)} ] || exit {NO_SCRATCH}; " if folder else ""


def path(place: str) -> str:
    """A path, quoted; one that begins with a dash is not taken as an option."""
    return shlex.quote(f"./{place}" if place.startswith("-") else place)


def _quoted(command: Sequence[str] | str) -> str:
    if not command:
        raise InputError("there is no command to run on the device")
    return shlex.quote(command if isinstance(command, str) else shlex.join(command))


def read_back(written: IO[bytes]) -> str:
    """The text that a command wrote into an open file."""
    written.seek(0)
    return written.read().decode(errors="replace")


def last_line(printed: str) -> str:
    """The last line of a program's output, without its full stop."""
    lines = [" ".join(line.split()) for line in printed.splitlines() if line.strip()]
    return (lines or ["it said nothing"])[-1].rstrip(".")[:300]
