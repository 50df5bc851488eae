"""Damage to files that keeps enough of their structure to get past the first check of a reader.

Each function takes a `random.Random` and the content of a file, and gives other content.
"""

import hashlib
import io
import json
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

from pipeline.regular_file import is_zip

Mutation = Callable[[Random, bytes], bytes]

_NUMBERS = (0, 1, 2, -1, 7, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1,
            2**63, 2**64 - 1)  # fmt: skip
_TEXTS = ("", "x", "x" * 5000, "..", "../../outside", "/etc/passwd", "a/../../b", "-rf", "$(touch outside)", "a\nb",
          "\x1b[31mred", "\0", "\u202e", "\ud800", "é" * 200, "nan", "1e999", "0x10", "__class__", "%s%n", "*" * 300,
          "CON", "@model_path/../../weight.bin")  # fmt: skip
_VALUES = (None, True, False, 0, -1, 1, 0.5, -0.0, 1e308, float("nan"), float("inf"), 2**31, 2**63, 2**64, 10**30,
           10**4000, [], {}, [[]], [None], {"": None}, *_TEXTS)  # fmt: skip
_DEEP = 3000
_MOST_CELLS = 400


def raw(random: Random, content: bytes) -> bytes:
    """Bytes overwritten, cut out, repeated, moved; whole numbers made extreme; most often near an end of the file."""
    data = bytearray(content)
    at = _place(random, len(data))
    match random.randrange(9):
        case 0 if data:
            data[min(at, len(data) - 1)] ^= 1 << random.randrange(8)
        case 1:
            data[at : at + random.choice((1, 2, 4, 8))] = random.randbytes(random.choice((1, 2, 4, 8)))
        case 2 | 3:
            kind = random.choice(("<B", "<H", "<I", "<Q", ">H", ">I"))
            size = struct.calcsize(kind)
            at -= at % size
            number = random.choice((*_NUMBERS, len(data), len(data) - 1, len(data) + 1, at, random.getrandbits(64)))
            data[at : at + size] = struct.pack(kind, number % 256**size)
        case 4:
            del data[at : at + random.choice((1, 4, 16, 256, 4096))]
        case 5:
            data[at:at] = data[at : at + random.choice((1, 4, 64, 1024))] * random.choice((1, 2, 100))
        case 6:
            del data[at:]
        case 7:
            other = _place(random, len(data))
            size = random.choice((4, 8, 64))
            data[other : other + size] = data[at : at + size]
        case _:
            data += random.randbytes(random.choice((1, 8, 4096)))
    return bytes(data)


def words(random: Random, content: bytes) -> bytes:
    """As `raw`; or an aligned offset of a FlatBuffer made to point elsewhere, so that parts are shared or endless."""
    if random.random() < 0.3 or len(content) < 64:
        return raw(random, content)
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 8))):
        at, other = (4 * random.randrange(min(len(data), 1 << 14) // 4) for _ in range(2))
        (number,) = struct.unpack_from("<I", data, at)
        shifted = number + 4 * random.randint(-64, 64)
        target = other - at
        number = random.choice((shifted, target, number * 2, random.choice(_NUMBERS)))
        struct.pack_into("<I", data, at, number % 2**32)
    return bytes(data)


def text(random: Random, content: bytes) -> bytes:
    """Numbers and words of a text made odd, lines moved, repeated and left out."""
    if random.random() < 0.2:
        return raw(random, content)
    lines = content.decode(errors="replace").splitlines() or [""]
    at = random.randrange(len(lines))
    match random.randrange(5):
        case 0 | 1:
            tokens = re.split(r"(\w[\w.+-]*)", lines[at])
            place = random.randrange(len(tokens))
            tokens[place] = _odd(random)
            lines[at] = "".join(tokens)
        case 2:
            del lines[at]
        case 3:
            lines[at:at] = [random.choice(lines)] * random.choice((1, 2, 500))
        case _:
            lines[at] += random.choice(lines)
    return "\n".join((*lines, "")).encode(errors="surrogatepass")


def xml(random: Random, content: bytes) -> bytes:
    """An attribute made odd, an element repeated or nested, an entity declared; or as `text`."""
    written = content.decode(errors="replace")
    attributes = list(re.finditer(r'="([^"]*)"', written))
    match random.randrange(6):
        case 0 | 1 | 2 if attributes:
            one = random.choice(attributes)
            value = random.choice((_odd(random), random.choice(attributes)[1])).replace('"', "'")
            return (written[: one.start(1)] + value + written[one.end(1) :]).encode(errors="surrogatepass")
        case 3:
            bomb = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "x" * 10}">' for n in range(9))
            start = written.find("<", written.find("?>") + 1)
            return (written[:start] + f"<!DOCTYPE net [{bomb}]>" + written[start:]).replace("fp32", "&e8;").encode()
        case 4:
            return (written[: len(written) // 2] + "<layer>" * _DEEP + written[len(written) // 2 :]).encode()
    return text(random, content)


def tree(random: Random, content: bytes) -> bytes:
    """A value of a JSON document replaced, left out, repeated, moved or nested; its own digest follows, mostly."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return raw(random, content)
    if random.random() < 0.1:
        return raw(random, content)
    document = _changed(random, document)
    if isinstance(document, dict) and "digest" in document and random.random() < 0.8:
        seal(document)
    written = json.dumps(document)
    if random.random() < 0.03:
        written = written.replace("null", "[" * 100_000 + "]" * 100_000, 1)
    return written.encode()


def seal(document: dict[str, Any]) -> None:
    """Give a document of the pipeline, or bundle.json, the digest that its content has."""
    rest = {key: value for key, value in document.items() if key != "digest"}
    own = hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    document["digest"] = own
    if "run" in document:
        try:
            lines = {"bundle.json": own} | {name: facts["sha256"] for name, facts in document["files"].items()}
            listed = "".join(f"{lines[name]}  {name}\n" for name in sorted(lines))
            document["digest"] = hashlib.sha256(listed.encode()).hexdigest()
        except (TypeError, KeyError, AttributeError, UnicodeEncodeError):
            return


def safetensors(random: Random, content: bytes) -> bytes:
    """The table of a safetensors file changed, with its length right mostly; or as `raw`."""
    (length,) = struct.unpack_from("<Q", content) if len(content) >= 8 else (0,)
    if random.random() < 0.3 or not 0 < length <= len(content) - 8:
        return raw(random, content)
    try:
        table = json.loads(content[8 : 8 + length])
        entries = [value for value in table.values() if isinstance(value, dict) and "data_offsets" in value]
        if entries and random.random() < 0.4:
            one, other = random.choice(entries), random.choice(entries)
            key = random.choice(("data_offsets", "shape", "dtype"))
            one[key] = random.choice((other[key], [0, len(content)], [2**63, 2**64], [5, 1], [-1, 4], "F16"))
            table = json.dumps(table).encode()
        elif random.random() < 0.3 and isinstance(table.get("__metadata__"), dict):
            table["__metadata__"] = {key: tree(random, value.encode()).decode(errors="replace")
                                     for key, value in table["__metadata__"].items()}  # fmt: skip
            table = json.dumps(table).encode()
        else:
            table = tree(random, content[8 : 8 + length])
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError):
        return raw(random, content)
    return struct.pack("<Q", len(table)) + table + content[8 + length :]


def archive(random: Random, content: bytes) -> bytes:
    """A member of a zip changed, renamed, left out or added; the archive is whole mostly."""
    if random.random() < 0.2 or not is_zip(io.BytesIO(content)):
        return raw(random, content)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as opened:
            members = [(name, opened.read(name)) for name in opened.namelist()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, zlib.error, EOFError):
        return raw(random, content)
    if not members:
        return raw(random, content)
    at = random.randrange(len(members))
    name, old = members[at]
    match random.randrange(8):
        case 0:
            del members[at]
        case 1:
            members[at] = (_odd(random).replace("\0", "") or "x", old)
        case 2:
            members.append((f"{name.partition('/')[0]}/{_odd(random)}", old))
        case 3:
            members[at] = (name, random.choice(members)[1])
        case _:
            members[at] = (name, (tree if name.endswith(".json") else raw)(random, old))
    written = io.BytesIO()
    with zipfile.ZipFile(
        written, "w", random.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    ) as new:
        for name, data in members:
            new.writestr(zipfile.ZipInfo(name.encode(errors="replace").decode()), data, new.compression)
    return written.getvalue()


def bundle(random: Random, content: bytes) -> bytes:
    """A member of a tar changed, renamed, made a link, left out or added; bundle.json follows, mostly."""
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as opened:
            members = {info.name: opened.extractfile(info).read() for info in opened}
        document = json.loads(members["bundle.json"])
    except (tarfile.TarError, OSError, ValueError, KeyError, AttributeError):
        return raw(random, content)
    choice = random.randrange(8)
    name = random.choice(list(members))
    kinds = {}
    match choice:
        case 0:
            return raw(random, content)
        case 1:
            members[_path(random)] = members.pop(name) if random.random() < 0.5 else b"more"
        case 2:
            kinds[name] = random.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, b"x"))
        case 3:
            members[name] = raw(random, members[name])
        case _:
            document = _changed(random, document)
    if isinstance(document, dict) and random.random() < 0.9:
        if choice < 4:
            document["files"] = {one: {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
                                 for one, data in sorted(members.items()) if one != "bundle.json"}  # fmt: skip
        seal(document)
        members["bundle.json"] = json.dumps(document).encode()
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=tarfile.USTAR_FORMAT) as new:
        for one in ("bundle.json", *sorted(set(members) - {"bundle.json"})):
            info = tarfile.TarInfo(one[:99])
            data = members.get(one, b"")
            info.size, info.type, info.linkname = len(data), kinds.get(one, tarfile.REGTYPE), "../outside"
            info.mode = 0o755 if one.endswith((".sh", ".py")) else 0o644
            try:
                new.addfile(info, io.BytesIO(data))
            except (ValueError, UnicodeError):
                return raw(random, content)
    return written.getvalue()


def png(random: Random, content: bytes) -> bytes:
    """A chunk of a PNG changed, with its checksum right; or as `raw`."""
    chunks, at = [], 8
    while at + 12 <= len(content) and random.random() < 0.95:
        (size,) = struct.unpack_from(">I", content, at)
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    if not chunks:
        return raw(random, content)
    place = random.randrange(len(chunks))
    chunks[place] = (chunks[place][0], raw(random, chunks[place][1]))
    return content[:8] + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def message(make: Callable[[], Any]) -> Mutation:
    """A field somewhere in a protobuf message changed, left out, repeated or nested in itself; or as `raw`.

    Args:
        make: an empty message of the file's kind.
    """

    def mutate(random: Random, content: bytes) -> bytes:
        from google.protobuf.message import DecodeError

        if random.random() < 0.15:
            return raw(random, content)
        whole = make()
        try:
            whole.ParseFromString(content)
        except DecodeError:
            return raw(random, content)
        found = []
        _collect(whole, found)
        if found:
            _change_field(random, *random.choice(found), [owner for owner, _ in found])
        return whole.SerializeToString()

    return mutate


def _collect(owner: Any, found: list[tuple[Any, Any]]) -> None:
    for descriptor, value in owner.ListFields():
        found.append((owner, descriptor))
        if descriptor.type != descriptor.TYPE_MESSAGE or len(found) > 20_000:
            continue
        if _is_map(descriptor):
            values = (
                [value[key] for key in value] if descriptor.message_type.fields_by_name["value"].message_type else []
            )
        else:
            values = value if _is_repeated(value) else [value]
        for one in values:
            _collect(one, found)


def _change_field(random: Random, owner: Any, descriptor: Any, owners: list[Any]) -> None:
    value = getattr(owner, descriptor.name)
    if _is_map(descriptor) or random.random() < 0.15:
        owner.ClearField(descriptor.name)
        return
    if descriptor.type == descriptor.TYPE_MESSAGE:
        one = random.choice(value) if _is_repeated(value) and len(value) else value
        alike = [other for other in owners if other.DESCRIPTOR is descriptor.message_type]
        if _is_repeated(value):
            match random.randrange(4):
                case 0:
                    value.extend([one] * random.choice((1, 2, 50)))
                case 1:
                    del value[random.randrange(len(value))]
                case 2 if alike:
                    value.append(random.choice(alike))
                case _:
                    kept = [type(one).FromString(each.SerializeToString()) for each in value]
                    random.shuffle(kept)
                    del value[:]
                    value.extend(kept)
        elif alike:
            one.MergeFrom(type(one).FromString(random.choice(alike).SerializeToString()))
        return
    new = _scalar(random, descriptor, owners)
    try:
        if _is_repeated(value):
            if random.random() < 0.3:
                value.append(new)
            else:
                value[random.randrange(len(value))] = new
        else:
            setattr(owner, descriptor.name, new)
    except (ValueError, TypeError, UnicodeError):
        owner.ClearField(descriptor.name)


def _scalar(random: Random, descriptor: Any, owners: list[Any]) -> Any:
    kinds = type(descriptor)
    if descriptor.cpp_type == kinds.CPPTYPE_STRING:
        if descriptor.type == descriptor.TYPE_BYTES:
            return random.randbytes(random.choice((0, 1, 8, 100)))
        names = [value for owner in random.sample(owners, min(20, len(owners)))
                 for one, value in owner.ListFields() if isinstance(value, str)]  # fmt: skip
        return random.choice((*names, _odd(random)))
    if descriptor.cpp_type in (kinds.CPPTYPE_FLOAT, kinds.CPPTYPE_DOUBLE):
        return random.choice((0.0, -1.0, 1e38, float("nan"), float("inf")))
    if descriptor.cpp_type == kinds.CPPTYPE_BOOL:
        return bool(random.randrange(2))
    if descriptor.cpp_type == kinds.CPPTYPE_ENUM:
        return random.choice(descriptor.enum_type.values).number
    return random.choice((*_NUMBERS, -(2**31), -(2**63)))


def _is_repeated(value: Any) -> bool:
    return hasattr(value, "append")


def _is_map(descriptor: Any) -> bool:
    return descriptor.message_type is not None and descriptor.message_type.GetOptions().map_entry


def _changed(random: Random, document: Any) -> Any:
    """A JSON document with one value changed."""
    places: list[tuple[Any, Any]] = []
    pending = [document]
    while pending and len(places) < 100_000:
        holder = pending.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        keys = keys if len(keys) <= _MOST_CELLS else random.sample(list(keys), _MOST_CELLS)
        places += [(holder, key) for key in keys]
        pending += [holder[key] for key in keys if isinstance(holder[key], dict | list)]
    if not places or random.random() < 0.02:
        return random.choice(_VALUES)
    holder, key = random.choice(places)
    match random.randrange(7):
        case 0:
            del holder[key]
        case 1:
            other = random.choice(places)
            holder[key] = json.loads(json.dumps(other[0].get(other[1]) if isinstance(other[0], dict) else None))
        case 2 if isinstance(holder, dict):
            holder[_odd(random)] = holder.pop(key)
        case 3:
            deep: Any = holder[key]
            for _ in range(random.choice((1, 2, 400))):
                deep = [deep] if random.random() < 0.5 else {"x": deep}
            holder[key] = deep
        case 4 if isinstance(holder, list):
            holder[key:key] = [holder[key]] * random.choice((1, 5, 5000))
        case _:
            holder[key] = random.choice(_VALUES)
    return document


def _odd(random: Random) -> str:
    return random.choice((*_TEXTS, *map(str, _NUMBERS)))


def _path(random: Random) -> str:
    return random.choice(
        ("../outside", "/outside", "a/../../outside", "./x", "x//y", "bundle.json/x", "X\n", "é", "-x")
    )


def _place(random: Random, size: int) -> int:
    """A place in that many bytes: anywhere, or near the start or the end, where formats keep their tables."""
    near = int(size ** random.random())
    return random.choice((random.randrange(size + 1), near, near, size - near)) if size else 0
