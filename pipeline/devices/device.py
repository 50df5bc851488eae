"""A device as the stages see it, whatever its link: commands, copies, a scratch folder.

Nothing outlives its link: `lines` says how.
"""

import hashlib
import os
import re
import shlex
import signal
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Protocol, TypeVar

from pipeline.devices import lines
from pipeline.errors import DeviceError

TRIES_AFTER_SECONDS = (1.0, 3.0, 9.0)
"""Pauses before a copy whose link was cut is tried again; then it fails."""

_BYTES_PER_SECOND = 200_000  # a copy that is slower than this is taken for stuck
_SHORT_SECONDS = 60
_FULL = re.compile(r"No space left|quota exceeded|File too large|File size limit|not enough space", re.IGNORECASE)

_Result = TypeVar("_Result")


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
class Completed:
    """A command that ended.

    Attributes:
        returncode: its exit code, 128 and more for a signal, never 255.
        stdout, stderr: what it wrote.
    """

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Device:
    """A machine that files are brought to and run on.

    Attributes:
        name: as it was given: ``local``, ``ssh://...``, ``adb:...``.
        link: how it is reached.
    """

    name: str
    link: Link

    @property
    def is_local(self) -> bool:
        """Whether it is this machine."""
        return self.name == "local"

    @cached_property
    def home(self) -> str:
        """Where installations go: an absolute path on the device, which need not exist."""
        return self.output(f'printf %s "{self.link.shell_home}"')

    def run(
        self, command: Sequence[str] | str, *, timeout: float = _SHORT_SECONDS, input: bytes | None = None
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
                returncode, said = self._attend(lines.bounded(command, len(input or b"")), source, stdout, timeout)
            finally:
                if source is not None:
                    source.close()
            stdout.seek(0)
            return Completed(returncode, stdout.read().decode(errors="replace"), said)

    def output(self, command: Sequence[str] | str, *, timeout: float = _SHORT_SECONDS) -> str:
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
        return self._popen(lines.served(command), stdout=subprocess.PIPE, stderr=stderr)

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

    def push(self, source: Path, place: str) -> None:
        """Copy a file or a folder to the device; what stands there is replaced, a folder's other files stay.

        The sha256 of every file is verified there. A link that breaks is tried again a few times, later each time.

        Args:
            source: here.
            place: the path that it has there afterwards; folders above it are made.

        Raises:
            DeviceError: as `run`; the device is full; what arrived is not what was sent.
        """
        self._again(lambda: self._push(source, place))

    def pull(self, place: str, target: Path) -> None:
        """Copy a file or a folder from the device; `target` is the path that it has here afterwards.

        Raises:
            DeviceError: as `run`; it is not there.
        """
        self._again(lambda: self._pull(place, target))

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
            lines.SCRATCH, stdout=subprocess.PIPE, stderr=stderr
        ) as holder:  # fmt: skip
            too_late = threading.Timer(_SHORT_SECONDS, _kill, [holder])
            try:
                too_late.start()
                place = holder.stdout.readline().strip()
                if not place:
                    returncode = holder.wait()
                    if not too_late.is_alive():
                        raise self._too_late(_SHORT_SECONDS)
                    said = _said(stderr)
                    raise self.explain(returncode, said) or self.failure("mktemp -d", Completed(returncode, "", said))
                too_late.cancel()
                try:
                    yield place
                except Exception as error:  # that its folder is gone says less than that the link is
                    if holder.poll() and (trouble := self.explain(holder.returncode, _said(stderr))):
                        raise trouble from error
                    raise
            finally:
                too_late.cancel()
                with suppress(BrokenPipeError):
                    holder.stdin.close()
                with suppress(subprocess.TimeoutExpired):
                    holder.wait(_SHORT_SECONDS)
                _kill(holder)

    def _push(self, source: Path, place: str) -> None:
        if source.is_dir():
            names = sorted(file.relative_to(source).as_posix() for file in source.rglob("*") if file.is_file())
            digests = "".join(f"{_sha256(source / name)}  {name}\n" for name in names)
            with tempfile.NamedTemporaryFile(suffix=".tar") as packed:
                with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar:
                    tar.add(source, arcname=".")
                packed.flush()
                self._send(
                    Path(packed.name), f"mkdir -p {lines.path(place)} && cd {lines.path(place)} && tar -xf -", place
                )
            if names:
                self._send_bytes(digests.encode(), f"cd {lines.path(place)} && {lines.VERIFY}", place)
            return
        part, folder = lines.path(f"{place}.part"), lines.path(str(PurePosixPath(place).parent))
        mode = "755" if source.stat().st_mode & 0o100 else "644"
        digest = f"{_sha256(source)}  {place}.part"
        keep = f"echo {shlex.quote(digest)} | {{ {lines.VERIFY}; }} && chmod {mode} {part}"
        keep += f" && mv -f {part} {lines.path(place)}"
        keep += f" || {{ code=$?; rm -f {part}; exit $code; }}"
        if told := self.link.push_argv(source, f"{place}.part"):
            self.output(f"mkdir -p {folder}")
            self._copy(told, source.stat().st_size)
            self._send_bytes(b"", keep, place)
        else:
            self._send(source, f"mkdir -p {folder} && cat > {part} && {keep}", place)

    def _pull(self, place: str, target: Path) -> None:
        there = lines.path(place)
        kind = self.output(f"if [ -d {there} ]; then echo folder; elif [ -f {there} ]; then echo file; fi").strip()
        if not kind:
            raise DeviceError(f"{self.name} has no {place}, so it cannot be copied from there.")
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        if kind == "file" and (told := self.link.pull_argv(place, part)):
            self._copy(told, int(self.output(f"wc -c < {there}")))
        else:
            line = f"cat {there}" if kind == "file" else f"tar -cf - -C {there} ."
            with part.open("w+b") as written:
                size = int(self.output(f"du -sk {there}").split()[0]) * 1024
                returncode, said = self._attend(lines.bounded(line, 0), None, written, _seconds_for(size))
            if returncode:
                part.unlink()
                raise self.failure(line, Completed(returncode, "", said))
        if kind == "file":
            part.replace(target)
            return
        target.mkdir(exist_ok=True)
        with tarfile.open(part) as tar:
            tar.extractall(target, filter="data")
        part.unlink()

    def _send(self, source: Path, line: str, place: str) -> None:
        """Give a whole file to a shell line there that has to succeed."""
        size = source.stat().st_size
        with source.open("rb") as content, tempfile.TemporaryFile() as stdout:
            returncode, said = self._attend(lines.bounded(line, size), content, stdout, _seconds_for(size))
            self._arrived(Completed(returncode, _said(stdout), said), line, place)

    def _send_bytes(self, content: bytes, line: str, place: str) -> None:
        self._arrived(self.run(line, input=content, timeout=10 * _SHORT_SECONDS), line, place)

    def _arrived(self, done: Completed, line: str, place: str) -> None:
        """Raises where a copy failed, or is not what was sent."""
        if done.returncode == lines.NO_DIGESTS:
            raise DeviceError(
                f"{self.name} has neither sha256sum nor shasum, so nothing can prove that a copy arrived whole. "
                "Install coreutils or BusyBox there."
            )
        if wrong := [line.rpartition(":")[0] for line in done.stdout.splitlines() if line.endswith("FAILED")]:
            raise DeviceError(
                f"what arrived on {self.name} is not what was sent: the sha256 of {', '.join(wrong)} differs below "
                f"{place}. Its memory or disk may be failing, or another program writes there; run again."
            )
        if done.returncode:
            raise self.failure(line, done)

    def _copy(self, told: Sequence[str], size: int) -> None:
        """By the link's own command for it."""
        try:
            done = subprocess.run(told, capture_output=True, stdin=subprocess.DEVNULL, timeout=_seconds_for(size))
        except FileNotFoundError:
            raise DeviceError(self.link.missing()) from None
        except subprocess.TimeoutExpired:
            raise self._too_late(_seconds_for(size)) from None
        said = (done.stderr + done.stdout).decode(errors="replace")
        if done.returncode:
            raise self.explain(done.returncode, said) or self.failure(told, Completed(done.returncode, "", said))

    def _attend(self, line: str, source: IO[bytes] | None, stdout: IO[bytes], timeout: float) -> tuple[int, str]:
        """Run a line to its end. The link's input stays open meanwhile: its end would kill the command."""
        with tempfile.TemporaryFile() as stderr, self._popen(line, stdout=stdout, stderr=stderr) as popen:
            feeder = threading.Thread(target=_feed, args=(source, popen), daemon=True)
            try:
                if source is not None:
                    source.seek(0)
                    feeder.start()
                returncode = popen.wait(timeout)
            except subprocess.TimeoutExpired:
                raise self._too_late(timeout) from None
            finally:
                _kill(popen)
                if source is not None:
                    feeder.join()
                with suppress(BrokenPipeError):
                    popen.stdin.close()
            said = _said(stderr)
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

    def _too_late(self, seconds: float) -> DeviceError:
        return DeviceError(
            f"{self.name} did not finish within {seconds:.0f} s, and was told to stop. See whether it is busy, or "
            "stuck (`top` there), and run again."
        )

    def _again(self, act: Callable[[], _Result]) -> _Result:
        was_cut = False
        for pause in (*TRIES_AFTER_SECONDS, None):
            try:
                return act()
            except DeviceError as error:
                was_cut |= error.is_cut
                if pause is None or not was_cut:
                    raise
            time.sleep(pause)
        raise AssertionError("unreachable")


def _kill(popen: subprocess.Popen[str]) -> None:
    """With all that it started here: a jump host's connection, or on this machine the command itself."""
    if popen.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)


def _said(stderr: IO[bytes]) -> str:
    stderr.seek(0)
    return stderr.read().decode(errors="replace")


def _feed(source: IO[bytes], popen: subprocess.Popen[str]) -> None:
    pipe = popen.stdin.buffer
    with suppress(BrokenPipeError):  # the command did not want all of it, or the link is gone
        while piece := source.read(1 << 16):
            pipe.write(piece)
        pipe.flush()


def _seconds_for(size_bytes: int) -> float:
    return _SHORT_SECONDS + size_bytes / _BYTES_PER_SECOND


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
