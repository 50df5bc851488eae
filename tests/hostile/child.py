"""The process in which damaged files are read: `python -m tests.hostile.child WORK`; its limits, and its watch.

It prints a line once it is ready. It reads lines ``<reader> <number>`` and answers each with a line of JSON:
``outcome``, one of `OUTCOMES`, and ``why``.
"""

import json
import os
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from random import Random
from typing import Any

from pipeline.errors import InputError
from pipeline.exit_codes import said
from tests.hostile import seeds
from tests.hostile.readers import READERS, mutation_of

ANSWERED, REFUSED, WRONG = OUTCOMES = ("answered", "refused", "anything else")
READY = "ready"
TEMPORARY = Path("inside", "temporary")
"""$TMPDIR of the process, in its folder."""
SECONDS = 10
MEMORY_BYTES = 1 << 30  # beyond what the process has when it begins to read
MESSAGE_BYTES = 2000
_STARTS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
)
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.chown",
            "os.truncate", "os.utime", "shutil.rmtree", "shutil.move", "shutil.copyfile")  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class _TooSlow(BaseException):
    pass


class Watch:
    """Notes what is done outside of a folder while a file is read, by Python's audit events."""

    def __init__(self, inside: Path) -> None:
        self.inside = inside
        self.is_on = False
        self.seen: list[str] = []
        sys.addaudithook(self._see)

    def _see(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.is_on:
            return
        if event == "open":
            path, _, flags = args
            if isinstance(path, str | bytes) and flags & _WRITING and not self._is_inside(path):
                self.seen.append(f"writes {os.fsdecode(path)[:200]}")
        elif event in _CHANGES:
            folder = args[-1] if event != "os.truncate" and isinstance(args[-1], int) else -1  # dir_fd
            base = os.readlink(f"/proc/self/fd/{folder}") if folder >= 0 else os.getcwd()
            paths = [os.path.join(base, os.fsdecode(one)) for one in args if isinstance(one, str | bytes)]
            self.seen += [f"{event} {one[:200]}" for one in paths if not self._is_inside(one)]
        elif event == "subprocess.Popen" and self._is_inside(args[0]):
            return  # the ssh of the tests
        elif event in _STARTS or event == "socket.connect":
            self.seen.append(f"{event} {str(args[:2])[:200]}")

    def _is_inside(self, path: str | bytes) -> bool:
        place = os.path.abspath(os.fsdecode(path))
        return place == os.devnull or place.startswith(f"{self.inside}{os.sep}")


def main() -> int:
    work = Path(sys.argv[1]).resolve()
    (work / TEMPORARY).mkdir(parents=True, exist_ok=True)
    samples = work / "samples"
    if not samples.is_dir():
        fresh = work / "fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        seeds.build(fresh)
        fresh.rename(samples)
    watch = Watch(work / "inside")
    signal.signal(signal.SIGALRM, _stop)
    reports = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no report
    print(READY, file=reports, flush=True)
    known = set()
    for line in sys.stdin:
        reader, number = line.split()
        if reader not in known:  # which also imports what it needs, before its memory is limited
            known.add(reader)
            _read_whole_ones(watch.inside / "case", samples, reader)
        outcome, why = _tried(watch, samples, reader, int(number))
        print(json.dumps({"outcome": outcome, "why": why}), file=reports, flush=True)
    return 0


def _read_whole_ones(folder: Path, samples: Path, reader: str) -> None:
    """A reader answers where nothing is damaged, or its refusals would tell nothing."""
    for sample in sorted((samples / reader).iterdir()):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(sample, folder)
        with suppress(InputError) if sample.name in seeds.REFUSED else nullcontext():
            READERS[reader].read(folder)


def _tried(watch: Watch, samples: Path, reader: str, number: int) -> tuple[str, str]:
    folder = watch.inside / "case"
    shutil.rmtree(watch.inside)
    (watch.inside.parent / TEMPORARY).mkdir(parents=True)
    damage(samples / reader, folder, Random(f"{reader} {number}"))
    outside = _listing(watch.inside.parent)
    watch.seen.clear()
    outcome, why = judged(READERS[reader].read, folder, READERS[reader].refuses, watch)
    if watch.seen:
        return WRONG, watch.seen[0]
    if _listing(watch.inside.parent) != outside:
        return WRONG, "a file beside its folder was changed"
    return outcome, why


def judged(
    read: Callable[[Path], None], folder: Path, refuses: tuple[type[Exception], ...], watch: Watch
) -> tuple[str, str]:
    """Read a damaged sample within the limits: the outcome, and why it is that."""
    with _limited(watch):
        try:
            read(folder)
            return ANSWERED, ""
        except refuses as error:
            return _judged_message(said(error))
        except (Exception, _TooSlow) as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            return WRONG, f"{type(error).__name__}: {str(error)[:300]!r} at {where.filename}:{where.lineno}"


def _judged_message(message: str) -> tuple[str, str]:
    try:
        size = len(message.encode())
    except UnicodeEncodeError:
        return WRONG, f"a message that cannot be printed: {message[:300]!a}"
    if size >= MESSAGE_BYTES:
        return WRONG, f"a message of {size} bytes: {message[:300]!r}"
    if not message.isprintable():
        return WRONG, f"a message of several lines, or with signs that a terminal obeys: {message[:300]!r}"
    return REFUSED, message


@contextmanager
def _limited(watch: Watch) -> Iterator[None]:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else None
    if pages is not None:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES, hard))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    watch.is_on = True
    try:
        yield
    finally:
        watch.is_on = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def _stop(number: int, frame: Any) -> None:
    raise _TooSlow(f"not done after {SECONDS} s")


def damage(reader: Path, folder: Path, random: Random) -> None:
    """Copy one of a reader's samples to a folder, and change it."""
    shutil.copytree(random.choice(sorted(reader.iterdir())), folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = random.choice(files)
    if random.random() < 0.04 and path.suffix != ".txt":  # what a device prints is no file
        _replace(path, random)
        return
    mutate, content = mutation_of(path), path.read_bytes()
    for _ in range(random.choice((1, 1, 1, 2, 2, 4))):
        content = mutate(random, content)
    path.write_bytes(content)


def _replace(path: Path, random: Random) -> None:
    """Something else in the place of a file."""
    path.unlink()
    match random.randrange(7):
        case 0:
            path.mkdir()
        case 1:
            os.mkfifo(path)
        case 2:
            path.symlink_to("/dev/zero")
        case 3:
            path.symlink_to(path.name)
        case 4:
            path.symlink_to("/etc/passwd")
        case 5:
            path.write_bytes(b"")
        case _:
            path.write_bytes(random.randbytes(random.choice((1, 8, 100, 10_000))))


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for place in (folder, *folder.glob("samples/**/*")):
        if place.name != "inside" and place != folder:
            status = place.lstat()
            found[str(place)] = (status.st_size, status.st_mtime_ns)
    return found | {path.name: (0, 0) for path in folder.iterdir()}


if __name__ == "__main__":
    sys.exit(main())
