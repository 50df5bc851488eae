"""Reproducible tars: plain files with plain headers, the same bytes for the same content. Standard library only.

There is one encoding of a content: no date, no owner, mode 0755 for scripts and 0644 for other files, no data between
files or after the last. So a wrong byte is detected anywhere in the tar. Tar's extensions (long names, links,
attributes) are refused.
"""

import hashlib
import re
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from pipeline.errors import InputError

DISTRUST = "It was not made by this pipeline, or was changed since; do not install it, and build it again."

_BLOCK = 512
_RECORD = 20 * _BLOCK
_CHUNK = 1 << 20
_MOST = 8**11 - 1  # bytes in a file; a plain tar has eleven octal digits for it
_SCRIPTS = (".sh", ".py")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device node",
    tarfile.BLKTYPE: "a device node",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.DIRTYPE: "a folder's own entry",
}


@dataclass(frozen=True)
class Member:
    """A file in a tar.

    Attributes:
        start: where its content starts in the tar, bytes.
        size_bytes: how long that is.
        sha256: of it, hex.
    """

    start: int
    size_bytes: int
    sha256: str


def write(tar: Any, members: Mapping[str, Path | bytes]) -> None:
    """Write files in the order given.

    Args:
        tar: open for writing, and empty.
        members: content of each file, or where that is, by its path.
    """
    for name, content in members.items():
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        tar.write(_header(name, size))
        if isinstance(content, bytes):
            tar.write(content)
        else:
            with content.open("rb") as file:
                shutil.copyfileobj(file, tar, _CHUNK)
        tar.write(b"\0" * (-size % _BLOCK))
    tar.write(_end(tar.tell()))


def read(tar: BinaryIO, path: Path) -> dict[str, Member]:
    """Read all of a tar.

    Args:
        tar: open for reading, at its start.
        path: what messages call it.

    Raises:
        InputError: a byte is not as `write` writes it; a path is not allowed or comes twice, or is no plain file's.
    """
    members: dict[str, Member] = {}
    while (header := tar.read(_BLOCK)) != b"\0" * _BLOCK:
        name, size = _read_header(header, path)
        if name in members:
            raise InputError(f"{path} holds `{name}` twice. {DISTRUST}")
        start, content = tar.tell(), hashlib.sha256()
        for chunk in chunks(tar, size, path):
            content.update(chunk)
        if any(tar.read(-size % _BLOCK)):
            raise InputError(f"{path}: after `{name}` stands what belongs to no file. {damaged(path)}")
        members[name] = Member(start, size, content.hexdigest())
    require_apart(members, str(path))
    written = tar.tell() - _BLOCK
    tar.seek(written)
    if tar.read() != _end(written):
        raise InputError(f"{path} does not end as it must, after its last file. {damaged(path)}")
    return members


def chunks(tar: BinaryIO, size: int, path: Path) -> Iterator[bytes]:
    """The next bytes of a tar, in pieces. InputError where it ends before."""
    while size:
        chunk = tar.read(min(size, _CHUNK))
        if not chunk:
            raise InputError(f"{path} ends in the middle of a file: it was cut short. {damaged(path)}")
        size -= len(chunk)
        yield chunk


def mode(name: str) -> int:
    """The permissions that a file has, by its name."""
    return 0o755 if name.endswith(_SCRIPTS) else 0o644


def is_part(text: str) -> bool:
    """Whether a text can be one part of a path: letters, digits, ``_``, ``.``, ``+`` and ``-``, beginning with neither
    a point nor a sign."""
    return _PART.fullmatch(text) is not None


def require_below(name: str, where: str) -> None:
    """A path stays below the folder that it is unpacked into, and means the same on every system; else InputError."""
    if not all(map(is_part, name.split("/"))):
        raise InputError(
            f"{where} holds `{name}`, which is no path below the bundle's own folder, of letters, digits, `_`, `.`, "
            f"`+` and `-`. {DISTRUST}"
        )


def require_apart(names: Iterable[str], where: str) -> None:
    """No two paths are one file, where case does not count either, and none is another's folder; else InputError."""
    seen: dict[str, str] = {}
    for name in names:
        if other := seen.get(name.lower()):
            raise InputError(f"{where} holds both `{other}` and `{name}`, one file where case does not count.")
        seen[name.lower()] = name
    for name in seen:
        for folder in map(str, PurePosixPath(name).parents):
            if folder in seen:
                raise InputError(f"{where} holds `{seen[folder]}` as a file and as a folder. {DISTRUST}")


def damaged(path: Path) -> str:
    """What to do about a tar whose bytes are wrong."""
    return f"It was damaged or changed on its way; copy or build it again, and install nothing of this {path.name}."


def _read_header(header: bytes, path: Path) -> tuple[str, int]:
    try:
        info = tarfile.TarInfo.frombuf(header, "ascii", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not the tar of a bundle, or not a whole one ({error}). {damaged(path)}") from None
    if info.type != tarfile.REGTYPE:
        kind = _KINDS.get(info.type, f"an entry of type {info.type!r}")
        raise InputError(f"{path} holds `{info.name}`, {kind}; a bundle holds plain files alone. {DISTRUST}")
    require_below(info.name, str(path))
    if info.size < 0 or info.size > _MOST or header != _header(info.name, info.size):
        raise InputError(f"{path}: the header of `{info.name}` is not as this pipeline writes it. {damaged(path)}")
    return info.name, info.size


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, mode(name)
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def _end(written: int) -> bytes:
    """Two empty blocks, and more to fill the last record."""
    return b"\0" * (2 * _BLOCK + -(written + 2 * _BLOCK) % _RECORD)
