"""A device, whatever its link: running commands, and a temporary folder. `transfer` copies files to and from it.

No process or temporary folder on the device outlives the link; see `shell`.
"""

import re
import shlex
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Protocol

from pipeline.devices import shell
from pipeline.devices.shell import SHORT_SECONDS, Completed
from pipeline.devices.watch import MOST_BYTES, kill, watched
from pipeline.errors import DeviceError, shortened

_LINE = 1024  # of a path
_SAID = 16_384  # characters of an error output that are looked through
_GREETING_SECONDS = 5.0  # for a shell that prints what it should not to end
_FULL = re.compile(r"No space left|quota exceeded|File too large|File size limit|not enough space", re.IGNORECASE)


class Link(Protocol):
    """The way to a device: the argv that runs a shell line there, and the meaning of the link's own errors.

    Attributes:
        shell_home: folder for installations, as the device's shell expands it between double quotes.
    """

    shell_home: str

    def argv(self, line: str) -> list[str]: ...

    def push_argv(self, source: Path, place: str) -> Sequence[str] | None: ...

    def pull_argv(self, place: str, target: Path) -> Sequence[str] | None: ...

    def trouble(self, returncode: int, said: str) -> tuple[str, bool] | None: ...

    def missing(self) -> str: ...


@dataclass(frozen=True)
class Device:
    """A machine that files are copied to and run on.

    Attributes:
        name: as the user gave it: ``local``, ``ssh://...``, ``adb:...``.
        link: the way to it.
    """

    name: str
    link: Link

    @cached_property
    def scratches(self) -> list[str]:
        """The temporary folders in use. A retried copy must not create one again that went with its link."""
        return []

    @property
    def is_local(self) -> bool:
        """Whether it is this machine."""
        return self.name == "local"

    @cached_property
    def home(self) -> str:
        """Folder for installations: an absolute path on the device, which need not exist."""
        return self.output(f'printf %s "{self.link.shell_home}"')

    def run(
        self, command: Sequence[str] | str, *, timeout: float = SHORT_SECONDS, input: bytes | None = None
    ) -> Completed:
        """Run a command to its end.

        Args:
            command: an argv, which is quoted for the device's shell; or a shell line.
            timeout: seconds, after which the command is killed on the device.
            input: for its stdin; None: empty.

        Raises:
            DeviceError: the device cannot be reached, the link was cut, or the timeout expired. If the command itself
                fails, nothing is raised: see `Completed.returncode`.
        """
        with tempfile.TemporaryFile() as stdout:
            source = None
            if input is not None:
                source = tempfile.TemporaryFile()  # noqa: SIM115  (closed below)
                source.write(input)
            try:
                returncode, said = self.attend(shell.bounded(command, len(input or b"")), source, stdout, timeout)
            finally:
                if source is not None:
                    source.close()
            stdout.seek(0)
            return Completed(returncode, stdout.read().decode(errors="replace"), said)

    def output(self, command: Sequence[str] | str, *, timeout: float = SHORT_SECONDS) -> str:
        """The output of a command that must succeed.

        Raises:
            DeviceError: as `run`; its exit code is not 0 (the message quotes what it printed).
        """
        done = self.run(command, timeout=timeout)
        if done.returncode:
            raise self.failure(command, done)
        return done.stdout

    def start(self, command: Sequence[str] | str, *, stderr: IO[bytes] | int | None = None) -> subprocess.Popen[str]:
        """Start a process with text pipes for stdin and stdout.

        If stdin is closed, this host dies or the link is cut, the process is killed on the device, with all its child
        processes. The exit code is the command's, 128 and more for a signal; for the link's own codes see `explain`.

        Args:
            command: as for `run`.
            stderr: for its error output and the link's; as subprocess takes it.

        Raises:
            DeviceError: the link's own program is not installed.
        """
        return self._popen(shell.served(command), stdout=subprocess.PIPE, stderr=stderr)

    def explain(self, returncode: int, said: str) -> DeviceError | None:
        """The link's error behind the exit code and the error output of a started process; None if there is none."""
        trouble = self.link.trouble(returncode, shortened(said, _SAID))
        return None if trouble is None else DeviceError(trouble[0], is_cut=trouble[1])

    def failure(self, command: Sequence[str] | str, done: Completed) -> DeviceError:
        """The error of a command whose exit code is not 0."""
        said = " ".join((done.stderr or done.stdout).split())[-300:] or "nothing"
        if _FULL.search(said):
            return DeviceError(
                f"{self.name} has no room left: {said}. Make room there (df -h shows where), and run again; "
                "nothing that was there has been touched."
            )
        line = command if isinstance(command, str) else shlex.join(command)
        short = " ".join(line.split())
        short = short if len(short) < 80 else f"{short[:77]}..."
        return DeviceError(
            f"on {self.name}, `{short}` ended with exit code {done.returncode}; it said: {said}. Run it there by hand "
            "to see what is missing."
        )

    @contextmanager
    def scratch(self) -> Iterator[str]:
        """A new temporary folder on the device, private to its user. It is removed even if the link or this host fails.

        Folders that were left behind by a power failure of the device are removed as well.

        Yields:
            The absolute path.

        Raises:
            DeviceError: as `run`; the device is full.
        """
        with tempfile.TemporaryFile() as stderr, self._popen(
            shell.SCRATCH, stdout=subprocess.PIPE, stderr=stderr
        ) as process:  # fmt: skip
            try:
                with watched(process, (stderr,), SHORT_SECONDS) as watch:
                    place = process.stdout.readline(_LINE).strip()
                    returncode = None if place else process.wait()
                if watch.cause == "time":
                    raise self.too_late(SHORT_SECONDS)
                if watch.cause == "size":
                    raise self.too_much(MOST_BYTES)
                if not place:
                    said = shell.read_back(stderr)
                    raise self.explain(returncode, said) or self.failure("mktemp -d", Completed(returncode, "", said))
                if not place.startswith("/"):
                    process.stdin.close()
                    with suppress(subprocess.TimeoutExpired):  # it may print without end
                        process.wait(_GREETING_SECONDS)
                    kill(process)
                    raise DeviceError(
                        f"the shell on {self.name} prints `{place[:80]}` before it runs a command, so what commands "
                        "print cannot be told from it. Let its startup files (~/.bashrc, say) print nothing where it "
                        "is not interactive."
                    )
                self.scratches.append(place)
                try:
                    yield place
                except Exception as error:  # the loss of the link explains more than the loss of the folder
                    if process.poll() and (trouble := self.explain(process.returncode, shell.read_back(stderr))):
                        raise trouble from error
                    raise
                finally:
                    self.scratches.remove(place)
            finally:
                with suppress(BrokenPipeError):
                    process.stdin.close()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(SHORT_SECONDS)
                kill(process)

    def attend(
        self, line: str, source: IO[bytes] | None, stdout: IO[bytes], timeout: float, most_bytes: int = MOST_BYTES
    ) -> tuple[int, str]:
        """Run a line to its end. The link's stdin stays open until then: closing it would kill the command."""
        with tempfile.TemporaryFile() as stderr, self._popen(line, stdout=stdout, stderr=stderr) as popen:
            feeder = threading.Thread(target=_feed, args=(source, popen), daemon=True)
            try:
                if source is not None:
                    source.seek(0)
                    feeder.start()
                with watched(popen, (stdout, stderr), timeout, most_bytes) as watch:
                    returncode = popen.wait()
            finally:
                kill(popen)
                if source is not None:
                    feeder.join()
                with suppress(BrokenPipeError):
                    popen.stdin.close()
            if watch.cause == "time":
                raise self.too_late(timeout)
            if watch.cause == "size":
                raise self.too_much(most_bytes)
            said = shell.read_back(stderr)
        if trouble := self.explain(returncode, said):
            raise trouble
        return returncode, said

    def _popen(self, line: str, **where: object) -> subprocess.Popen[str]:
        """Start a line in a session of its own, so that its process group can be killed and no terminal can prompt."""
        argv = self.link.argv(line)
        try:
            return subprocess.Popen(
                argv, stdin=subprocess.PIPE, text=True, errors="replace", start_new_session=True, **where
            )
        except FileNotFoundError:
            raise DeviceError(self.link.missing()) from None
        except OSError as error:
            raise DeviceError(
                f"`{argv[0]}`, by which {self.name} is reached, cannot be run: {error.strerror}."
            ) from None

    def too_late(self, seconds: float) -> DeviceError:
        return DeviceError(
            f"{self.name} did not finish within {seconds:.0f} s, and was told to stop. See whether it is busy, or "
            "stuck (`top` there), and run again."
        )

    def too_much(self, most_bytes: int) -> DeviceError:
        return DeviceError(
            f"{self.name} printed more than {most_bytes:,} bytes, which no reply has, and was told to stop. See what "
            "its shell prints at its start, and whether it is the device that you mean."
        )

    def no_answer(self, what: str) -> DeviceError:
        """The error of a reply that cannot be one; what it is, in a few words of ours."""
        return DeviceError(
            f"{self.name} answers what no such device does: {what}. See whether it is the device that you mean, and "
            "what is installed there."
        )


def _feed(source: IO[bytes], popen: subprocess.Popen[str]) -> None:
    pipe = popen.stdin.buffer
    with suppress(BrokenPipeError):  # the command did not read all of it, or the link was cut
        while piece := source.read(1 << 16):
            pipe.write(piece)
        pipe.flush()
