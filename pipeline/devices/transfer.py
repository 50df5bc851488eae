"""Copy files to and from a device, through its shell or by the link's own command; verified there by sha256."""

import hashlib
import re
import shlex
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from pipeline.devices import shell
from pipeline.devices.device import Device
from pipeline.devices.shell import SHORT_SECONDS, Completed
from pipeline.devices.watch import MOST_BYTES
from pipeline.errors import DeviceError, first_line, quoted

TRIES_AFTER_SECONDS = (1.0, 3.0, 9.0)
"""Pauses before the retries of a copy whose link was cut; after the last one it fails."""

_BYTES_PER_SECOND = 200_000  # a slower copy counts as stuck


def push(device: Device, source: Path, place: str) -> None:
    """Copy a file or a folder to the device; existing files are replaced, other files in a folder are kept.

    The sha256 of every file is verified on the device. If the link is cut, the copy is retried a few times.

    Args:
        device: to copy to.
        source: path here.
        place: path on the device; missing folders above it are created.

    Raises:
        DeviceError: as `Device.run`; the device is full; a digest differs.
    """
    _with_retries(lambda: _push(device, source, place))


def pull(device: Device, place: str, target: Path) -> None:
    """Copy a file or a folder from the device to the path `target`.

    Raises:
        DeviceError: as `Device.run`; it is not there.
    """
    _with_retries(lambda: _pull(device, place, target))


def _with_retries(act: Callable[[], None]) -> None:
    """Call a function, and retry it after a pause if the link was cut; later also if the device is not reached."""
    was_cut = False
    for pause in (*TRIES_AFTER_SECONDS, None):
        try:
            act()
            return
        except DeviceError as error:
            was_cut |= error.is_cut
            if pause is None or not was_cut:
                raise
        time.sleep(pause)


def _push(device: Device, source: Path, place: str) -> None:
    scratch = next((one for one in device.scratches if f"{place}/".startswith(f"{one}/")), None)
    guard = shell.within(scratch)
    if source.is_dir():
        names = sorted(file.relative_to(source).as_posix() for file in source.rglob("*") if file.is_file())
        digests = "".join(f"{_sha256(source / name)}  {name}\n" for name in names)
        with tempfile.NamedTemporaryFile(suffix=".tar") as packed:
            with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar:
                tar.add(source, arcname=".")
            packed.flush()
            _send(
                device,
                Path(packed.name),
                f"{guard}mkdir -p {shell.path(place)} && cd {shell.path(place)} && tar -xf -",
                place,
            )
        if names:
            _send_bytes(device, digests.encode(), f"cd {shell.path(place)} && {shell.VERIFY}", place)
        return
    part, folder = shell.path(f"{place}.part"), shell.path(str(PurePosixPath(place).parent))
    mode = "755" if source.stat().st_mode & 0o100 else "644"
    digest = f"{_sha256(source)}  {place}.part"
    keep = f"echo {shlex.quote(digest)} | {{ {shell.VERIFY}; }} && chmod {mode} {part}"
    keep += f" && mv -f {part} {shell.path(place)}"
    keep += f" || {{ code=$?; rm -f {part}; exit $code; }}"
    if argv := device.link.push_argv(source, f"{place}.part"):
        device.output(f"{guard}mkdir -p {folder}")
        _copy(device, argv, source.stat().st_size)
        _send_bytes(device, b"", keep, place)
    else:
        _send(device, source, f"{guard}mkdir -p {folder} && cat > {part} && {keep}", place)


def _pull(device: Device, place: str, target: Path) -> None:
    there = shell.path(place)
    kind = device.output(f"if [ -d {there} ]; then echo folder; elif [ -f {there} ]; then echo file; fi").strip()
    if not kind:
        raise DeviceError(f"{device.name} has no {place}, so it cannot be copied from there.")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    if kind == "file" and (argv := device.link.pull_argv(place, part)):
        _copy(device, argv, _count(device, f"wc -c < {there}"))
    else:
        line = f"cat {there}" if kind == "file" else f"tar -cf - -C {there} ."
        with part.open("w+b") as written:
            size = _count(device, f"du -sk {there}") * 1024
            most = 2 * size + MOST_BYTES  # a tar file is larger than its content
            returncode, said = device.attend(shell.bounded(line, 0), None, written, _seconds_for(size), most)
        if returncode:
            part.unlink()
            raise device.failure(line, Completed(returncode, "", said))
    if kind == "file":
        part.replace(target)
        return
    _unpack(device, part, target)
    part.unlink()


def _unpack(device: Device, packed: Path, target: Path) -> None:
    """The folders and files in a tar from a device; DeviceError where there is anything else in it, or too much."""
    target.mkdir(exist_ok=True)
    left = packed.stat().st_size  # a sparse file claims more than was sent
    try:
        with tarfile.open(packed) as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts or not (member.isfile() or member.isdir()):
                    raise tarfile.ReadError(f"{quoted(member.name)} is no file or folder below that one")
                left -= member.size
                if left < 0:
                    raise tarfile.ReadError(f"{quoted(member.name)} is larger than what was sent")
                (target / name if member.isdir() else target / name.parent).mkdir(parents=True, exist_ok=True)
                if member.isfile():
                    with tar.extractfile(member) as content, (target / name).open("wb") as file:
                        shutil.copyfileobj(content, file)
    except (tarfile.TarError, EOFError, ValueError, OSError) as error:
        raise DeviceError(
            f"{device.name} sent a folder that cannot be unpacked: {first_line(error)}. Try again; if it fails again, "
            "see whether `tar` works there."
        ) from None


def _send(device: Device, source: Path, line: str, place: str) -> None:
    """Give a whole file to a shell line there that has to succeed."""
    size = source.stat().st_size
    with source.open("rb") as content, tempfile.TemporaryFile() as stdout:
        returncode, said = device.attend(shell.bounded(line, size), content, stdout, _seconds_for(size))
        _arrived(device, Completed(returncode, shell.read_back(stdout), said), line, place)


def _send_bytes(device: Device, content: bytes, line: str, place: str) -> None:
    _arrived(device, device.run(line, input=content, timeout=10 * SHORT_SECONDS), line, place)


def _arrived(device: Device, done: Completed, line: str, place: str) -> None:
    """Raises where a copy failed, or is not what was sent."""
    if done.returncode == shell.NO_SCRATCH:
        raise DeviceError(
            f"the link to {device.name} was cut, and its temporary folder went with it. See to the cable or network, "
            "and run again."
        )
    if done.returncode == shell.NO_DIGESTS:
        raise DeviceError(
            f"{device.name} has neither sha256sum nor shasum, so nothing can prove that a copy arrived whole. "
            "Install coreutils or BusyBox there."
        )
    if wrong := [line.rpartition(":")[0] for line in done.stdout.splitlines() if line.endswith("FAILED")]:
        raise DeviceError(
            f"what arrived on {device.name} is not what was sent: the sha256 of {quoted(', '.join(wrong))} differs "
            f"below {place}. Its memory or disk may be failing, or another program writes there; run again."
        )
    if done.returncode:
        raise device.failure(line, done)


def _copy(device: Device, argv: Sequence[str], size: int) -> None:
    """By the link's own command for it."""
    try:
        done = subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL, timeout=_seconds_for(size))
    except FileNotFoundError:
        raise DeviceError(device.link.missing()) from None
    except subprocess.TimeoutExpired:
        raise device.too_late(_seconds_for(size)) from None
    said = (done.stderr + done.stdout).decode(errors="replace")
    if done.returncode:
        raise device.explain(done.returncode, said) or device.failure(argv, Completed(done.returncode, "", said))


def _count(device: Device, line: str) -> int:
    """The number that a command prints first."""
    first = (device.output(line).split() or [""])[0]
    if not re.fullmatch(r"[0-9]{1,10}", first):
        raise device.no_answer(f"`{first[:40]}` where the size of a file is asked for")
    return int(first)


def _seconds_for(size_bytes: int) -> float:
    return SHORT_SECONDS + size_bytes / _BYTES_PER_SECOND


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
