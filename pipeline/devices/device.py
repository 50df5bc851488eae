"""A device as the stages see it, whatever its link: commands and a scratch folder; `transfer` copies to and from it.

Nothing outlives its link: `shell` says how.
"""

import os
import re
import shlex
import signal
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
from pipeline.errors import DeviceError

_FULL = re.compile(r"No space left|quota exceeded|File too large|File size limit|not enough space", re.IGNORECASE)


class Link(Protocol):
    """What differs between devices: how to run a shell line there, and what the link's own errors mean.

    Attributes:
        shell_home: where installations go, as the device's shell expands it between double quotes.
    """

    shell_home: str

    def argv(self, line: str) -> list[str]: ...

    def push_argv(self, source: Path, place: str) -> Sequence[str] | None: ...

    def pull_argv(self, place: str, target: Path) -> Sequence[str] | None: ...

    def trouble(self, returncode: int, said: str) -> tuple[str, bool] | None: ...

    def missing(self) -> str: ...


@dataclass(frozen=True)
class Device:
    """A machine that files are brought to and run on.

    Attributes:
        name: as it was given: ``local``, ``ssh://...``, ``adb:...``.
        link: how it is reached.
    """

    name: str
    link: Link

    @cached_property
    def scratches(self) -> list[str]:
        """Those that are open. One that has gone with its link must not be made anew by a copy that is tried again."""
        return []

    @property
    def is_local(self) -> bool:
        """Whether it is this machine."""
        return self.name == "local"

    @cached_property
    def home(self) -> str:
        """Where installations go: an absolute path on the device, which need not exist."""
        return self.output(f'printf %s "{self.link.shell_home}"')

    def run(
        self, command: Sequence[str] | str, *, timeout: float = SHORT_SECONDS, input: bytes | None = None
    ) -> Completed:
        """Run a command to its end.

        Args:
            command: words, which are quoted for the device's shell; or a shell line.
            timeout: seconds, after which it is killed there.
            input: what it reads; None for nothing.

        Raises:
            DeviceError: the device cannot be reached, the link was cut, or the time is up. Not where the command
                fails by itself: see `Completed.returncode`.
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
        """What a command prints that has to succeed.

        Raises:
            DeviceError: as `run`, or it ended with another exit code than 0; with what it said.
        """
        done = self.run(command, timeout=timeout)
        if done.returncode:
            raise self.failure(command, done)
        return done.stdout

    def start(self, command: Sequence[str] | str, *, stderr: IO[bytes] | int | None = None) -> subprocess.Popen[str]:
        """Start a process that serves requests: its stdin and stdout are text pipes.

        Where stdin is closed, this host dies, or the link is cut, the process is killed on the device, with all that
        it started. Its exit code is that of the command, 128 and more for a signal; `explain` tells of another.

        Args:
            command: as for `run`.
            stderr: where its error output goes, with the link's own; as subprocess takes it.

        Raises:
            DeviceError: the link's own program is not installed.
        """
        return self._popen(shell.served(command), stdout=subprocess.PIPE, stderr=stderr)

    def explain(self, returncode: int, said: str) -> DeviceError | None:
        """What is wrong with the link, by the exit code of a started process and its error output; None if nothing."""
        trouble = self.link.trouble(returncode, said)
        return None if trouble is None else DeviceError(trouble[0], is_cut=trouble[1])

    def failure(self, command: Sequence[str] | str, done: Completed) -> DeviceError:
        """A command that failed by itself, in words."""
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
        """A new folder on the device, for its owner alone; it is removed there whatever happens here or to the link.

        A folder that an earlier one could not remove, since the device lost its power, is removed as well.

        Yields:
            its absolute path.

        Raises:
            DeviceError: as `run`; the device is full.
        """
        with tempfile.TemporaryFile() as stderr, self._popen(
            shell.SCRATCH, stdout=subprocess.PIPE, stderr=stderr
        ) as holder:  # fmt: skip
            too_late = threading.Timer(SHORT_SECONDS, _kill, [holder])
            try:
                too_late.start()
                place = holder.stdout.readline().strip()
                if not place:
                    returncode = holder.wait()
                    if not too_late.is_alive():
                        raise self.too_late(SHORT_SECONDS)
                    said = shell.read_back(stderr)
                    raise self.explain(returncode, said) or self.failure("mktemp -d", Completed(returncode, "", said))
                too_late.cancel()
                if not place.startswith("/"):
                    raise DeviceError(
                        f"the shell on {self.name} prints `{place[:80]}` before it runs a command, so what commands "
                        "print cannot be told from it. Let its startup files (~/.bashrc, say) print nothing where it "
                        "is not interactive."
                    )
                self.scratches.append(place)
                try:
                    yield place
                except Exception as error:  # that its folder is gone says less than that the link is
                    if holder.poll() and (trouble := self.explain(holder.returncode, shell.read_back(stderr))):
                        raise trouble from error
                    raise
                finally:
                    self.scratches.remove(place)
            finally:
                too_late.cancel()
                with suppress(BrokenPipeError):
                    holder.stdin.close()
                with suppress(subprocess.TimeoutExpired):
                    holder.wait(SHORT_SECONDS)
                _kill(holder)

    def attend(self, line: str, source: IO[bytes] | None, stdout: IO[bytes], timeout: float) -> tuple[int, str]:
        """Run a line to its end. The link's input stays open meanwhile: its end would kill the command."""
        with tempfile.TemporaryFile() as stderr, self._popen(line, stdout=stdout, stderr=stderr) as popen:
            feeder = threading.Thread(target=_feed, args=(source, popen), daemon=True)
            try:
                if source is not None:
                    source.seek(0)
                    feeder.start()
                returncode = popen.wait(timeout)
            except subprocess.TimeoutExpired:
                raise self.too_late(timeout) from None
            finally:
                _kill(popen)
                if source is not None:
                    feeder.join()
                with suppress(BrokenPipeError):
                    popen.stdin.close()
            said = shell.read_back(stderr)
        if trouble := self.explain(returncode, said):
            raise trouble
        return returncode, said

    def _popen(self, line: str, **where: object) -> subprocess.Popen[str]:
        """A session of its own: the feeder kills its whole group, and no terminal is there to ask anything."""
        told = self.link.argv(line)
        try:
            return subprocess.Popen(told, stdin=subprocess.PIPE, text=True, start_new_session=True, **where)
        except FileNotFoundError:
            raise DeviceError(self.link.missing()) from None

    def too_late(self, seconds: float) -> DeviceError:
        return DeviceError(
            f"{self.name} did not finish within {seconds:.0f} s, and was told to stop. See whether it is busy, or "
            "stuck (`top` there), and run again."
        )


def _kill(popen: subprocess.Popen[str]) -> None:
    """With all that it started here: a jump host's connection, or on this machine the command itself."""
    if popen.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)


def _feed(source: IO[bytes], popen: subprocess.Popen[str]) -> None:
    pipe = popen.stdin.buffer
    with suppress(BrokenPipeError):  # the command did not want all of it, or the link is gone
        while piece := source.read(1 << 16):
            pipe.write(piece)
        pipe.flush()
