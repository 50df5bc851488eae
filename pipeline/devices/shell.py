"""Shell lines that a device runs, so that nothing on it outlives its link.

A command on a device runs beside a feeder that reads the link's input to its end; the end
comes when the host closes it, dies, or the link is cut, and then the feeder kills the command with all that it
started. Input of a known length is handed on first, so that a command can see the end of its input while the link
lasts. A scratch folder belongs to a process on the device that waits for the same end and then removes it.

The shell lines are POSIX sh with `head -c`, `mktemp`, `tar` and `sha256sum` (or `shasum`), which BusyBox and Android
have too.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

from pipeline.errors import InputError

SHORT_SECONDS = 60
"""That a command may take which does little."""

# $PPID of a child is the feeder itself, which a command that ends has to end too. A command may close its input
# before the link ends: then what comes is thrown away, and the end is waited for all the same. The feeder becomes
# another program once it has fed, since only then no shell keeps its end of the pipe, whose end the command waits for.
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
    """A command that ended.

    Attributes:
        returncode: its exit code, 128 and more for a signal, never 255.
        stdout, stderr: what it wrote.
    """

    returncode: int
    stdout: str
    stderr: str


def served(command: Sequence[str] | str) -> str:
    """A line for a command that reads the link's input as it comes, and is killed at its end."""
    return _BESIDE.format(feed=_SERVED, command=_quoted(command))


def bounded(command: Sequence[str] | str, size: int) -> str:
    """A line for a command that reads so many bytes of the link's input, and is killed where the link ends."""
    head = f"head -c {size}; " if size else ""
    return _BESIDE.format(feed=_BOUNDED.format(head=head), command=_quoted(command))


def within(folder: str | None) -> str:
    """The beginning of a line that writes below a scratch folder: with it, nothing makes the folder anew."""
    return f"[ -d {path(folder)} ] || exit {NO_SCRATCH}; " if folder else ""


def path(place: str) -> str:
    """A path, quoted; one that begins with a dash is no option."""
    return shlex.quote(f"./{place}" if place.startswith("-") else place)


def _quoted(command: Sequence[str] | str) -> str:
    if not command:
        raise InputError("there is no command to run on the device")
    return shlex.quote(command if isinstance(command, str) else shlex.join(command))


def read_back(written: IO[bytes]) -> str:
    """What a command wrote into a file that is open here."""
    written.seek(0)
    return written.read().decode(errors="replace")


def last_line(said: str) -> str:
    """The last that a program said, on one line and without its full stop."""
    lines = [" ".join(line.split()) for line in said.splitlines() if line.strip()]
    return (lines or ["it said nothing"])[-1].rstrip(".")[:300]
