"""A bundle: one tar with all that a device needs, reproducible byte for byte and verified when it is read.

A bundle is a plain tar of plain files (`deploy.ustar`). Its first member, bundle.json, has the size and sha256 of every
other member; its own ``digest`` covers all of them and the rest of bundle.json. The members are sorted, so that any
machine writes the same bytes.

A signature is a file beside it, made by OpenSSH with the user's own key (``ssh-keygen -Y sign``).
"""

import hashlib
import json
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from pipeline import regular_file
from pipeline.artifacts import documents
from pipeline.artifacts.bundle_result import BundleManifest
from pipeline.artifacts.digests import folder_digest
from pipeline.artifacts.export_result import FileFacts
from pipeline.deploy import ustar
from pipeline.deploy.ustar import DISTRUST, Member, damaged
from pipeline.errors import InputError, StageError, quoted

MANIFEST = "bundle.json"
NAMESPACE = "repnets-bundle"
"""Namespace of signatures, so that one of the same key for mail or git is not valid for a bundle."""

COMMANDS = (("python3", "selftest.py"),)
"""What `BundleManifest.run` may be: it is run on devices."""

_LONGEST_S = 86_400
_MANIFEST_ROOM = 16 << 20  # bytes; it is read into memory


@dataclass(frozen=True)
class Bundle:
    """A verified bundle, as `open_bundle` returns it.

    Attributes:
        path: the tar.
        manifest: its bundle.json.
        members: of the tar, by path, bundle.json included.
    """

    path: Path
    manifest: BundleManifest
    members: Mapping[str, Member]

    @property
    def digest(self) -> str:
        """Sha256 over the whole content, hex."""
        return self.manifest.digest

    @property
    def name(self) -> str:
        """``<model>-<target>-<first 12 of the digest>``: the name of the tar when it was written."""
        return f"{self.manifest.model}-{self.manifest.target}-{self.digest[:12]}"

    @property
    def signature(self) -> Path:
        """Path of its signature, whether it has one or not."""
        return signature_of(self.path)

    def read(self, name: str) -> bytes:
        """Content of one member. InputError if the tar has changed since it was opened."""
        with self.path.open("rb") as tar:
            return b"".join(self._chunks(tar, name))

    def unpack(self, folder: Path) -> None:
        """Write all members into a folder, which appears by a rename, whole or not at all.

        Args:
            folder: must not exist or be empty.

        Raises:
            InputError: the folder is not empty, or the tar has changed since it was opened.
        """
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(f"{folder} is not empty, so {self.path.name} was not unpacked there. Name another folder.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            with self.path.open("rb") as tar:
                for name in self.members:
                    place = fresh / name
                    place.parent.mkdir(parents=True, exist_ok=True)
                    with place.open("xb") as file:
                        file.writelines(self._chunks(tar, name))
                    place.chmod(ustar.mode(name))
            fresh.chmod(0o755)
            os.replace(fresh, folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def _chunks(self, tar: BinaryIO, name: str) -> Iterator[bytes]:
        member, content = self.members[name], hashlib.sha256()
        tar.seek(member.start)
        for chunk in ustar.chunks(tar, member.size_bytes, self.path):
            content.update(chunk)
            yield chunk
        if content.hexdigest() != member.sha256:
            raise InputError(f"{self.path}: `{name}` has changed since the bundle was opened. Open it again.")


def write(folder: Path, members: Mapping[str, Path | bytes], manifest: BundleManifest) -> Path:
    """Write a bundle under its own name, ``<model>-<target>-<digest12>.tar``; it appears by a rename.

    Args:
        folder: for the tar; created if it does not exist.
        members: content of each file, or a path of the content, by its path in the bundle.
        manifest: bundle.json; its ``digest``, ``files`` and ``sha256_of_file`` are filled in.

    Returns:
        The tar.

    Raises:
        InputError: a path is not allowed in a bundle; the name of the model or target is not allowed in a tar's.
    """
    names = sorted(members)
    for key, name in (("model", manifest.model), ("target", manifest.target)):
        if not ustar.is_part(name):
            raise InputError(
                f"the {key} `{name}` cannot be part of a bundle's name, which devices must read: it takes "
                "letters from a to z, digits, `_`, `.`, `+` and `-`. Rename it in the configuration."
            )
    for name in names:
        ustar.require_below(name, "this bundle")
    ustar.require_apart([MANIFEST, *names], "this bundle")
    named = replace(manifest, digest="", files={name: _facts(members[name]) for name in names})
    named = replace(named, sha256_of_file=_held(named).get(named.file, ""))
    named = replace(named, digest=digest(documents.plain(named)))
    content = (json.dumps(documents.plain(named), indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".bundle.", delete=False) as tar:
        try:
            ustar.write(tar, {MANIFEST: content} | {name: members[name] for name in names})
            tar.flush()
            os.chmod(tar.name, 0o644)
            path = folder / f"{Bundle(folder, named, {}).name}.tar"
            os.replace(tar.name, path)
        except BaseException:
            os.unlink(tar.name)
            raise
    return path


def digest(document: Mapping[str, Any]) -> str:
    """The ``digest`` that a bundle.json must have: sha256 over lines ``<sha256>  <path>`` as sha256sum prints, hex.

    In the order of the paths, one for each file; the line of bundle.json itself has the sha256 of what it says, its
    ``digest`` left out, as JSON with sorted keys and no space.
    """
    rest = {key: value for key, value in document.items() if key != "digest"}
    own = hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    lines = {MANIFEST: own} | {name: facts["sha256"] for name, facts in document["files"].items()}
    return hashlib.sha256("".join(f"{lines[name]}  {name}\n" for name in sorted(lines)).encode()).hexdigest()


def open_bundle(path: Path) -> Bundle:
    """Read a bundle and verify every byte of it. Nothing is written, and nothing in it is run.

    Args:
        path: of the tar.

    Raises:
        InputError: it is missing, cut short or no bundle; a field of its bundle.json cannot be; or a member climbs
            out of its folder, is a link or a device node, comes twice, is not listed or is missing, or does not have
            its digest. Names the member.
    """
    try:
        regular_file.require(path)
        with path.open("rb") as tar:
            members = ustar.read(tar, path)
            manifest, right_digest = _read_manifest(tar, path, members)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist. `snakemake bundles` makes the bundles, in dist/.") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, and not the tar of a bundle. Name the tar.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. {damaged(path)}") from None
    listed = manifest.files
    for name in listed:
        if name not in members:
            raise InputError(f"{path}: bundle.json names `{name}`, but the bundle does not hold it. {DISTRUST}")
    for name, member in members.items():
        if name == MANIFEST:
            continue
        if name not in listed:
            raise InputError(f"{path} holds `{name}`, which bundle.json does not name. {DISTRUST}")
        if (member.sha256, member.size_bytes) != (listed[name].sha256, listed[name].size_bytes):
            raise InputError(f"{path}: `{name}` does not have the sha256 that bundle.json names. {damaged(path)}")
    if manifest.digest != right_digest:
        raise InputError(f"{path}: bundle.json does not have the digest that it names. {damaged(path)}")
    _require_fields(path, manifest)
    _require_checked(path, manifest)
    return Bundle(path, manifest, members)


def signature_of(path: Path) -> Path:
    """Path of the signature of a bundle: ``<bundle>.tar.sig``."""
    return path.with_name(f"{path.name}.sig")


def sign(path: Path, key: Path) -> Path:
    """Sign a bundle with an SSH key. The signature is a file beside the bundle, which does not change.

    Args:
        path: the tar.
        key: a private key; or the public key of one in the agent, which is required for a key with a passphrase.

    Returns:
        The signature: ``<bundle>.tar.sig``.

    Raises:
        InputError: there is no such key, or it cannot be used.
        StageError: OpenSSH is not installed.
    """
    key = key.expanduser()
    if not key.is_file():
        raise InputError(f"there is no key {key} to sign {path.name} with. Correct the path (ssh-keygen makes a key).")
    place = signature_of(path)
    with suppress(FileNotFoundError):  # ssh-keygen asks before it overwrites
        place.unlink()
    done = _ssh_keygen(["-Y", "sign", "-f", str(key), "-n", NAMESPACE, str(path)])
    if done.returncode or not place.is_file():
        raise InputError(
            f"{path.name} could not be signed with {key}: {_said(done)}. A key with a passphrase must be in the "
            f"agent: ssh-add {key}, and then name {key.name.removesuffix('.pub')}.pub."
        )
    return place


def verify_signature(path: Path, allowed_signers: Path, identity: str) -> str:
    """Verify a bundle's signature by the keys that the user trusts.

    Args:
        path: the tar.
        allowed_signers: OpenSSH's file of them: lines of ``<identity> <public key>`` (ssh-keygen(1)).
        identity: the required signer, as named in that file.

    Returns:
        OpenSSH's message: who signed, and with which key.

    Raises:
        InputError: it is not signed, or not by that signer, or was changed after it was signed.
        StageError: OpenSSH is not installed.
    """
    place, allowed = signature_of(path), allowed_signers.expanduser()
    if not allowed.is_file():
        raise InputError(
            f"there is no file {allowed} of allowed signers. Write a line a signer into it: <identity> <public key>, "
            "e.g. `you@example.org ssh-ed25519 AAAA...`."
        )
    if not place.is_file():
        raise InputError(
            f"{path} is not signed, and a signature is required: there is no {place.name} beside it. Sign it with "
            f"`ssh-keygen -Y sign -f KEY -n {NAMESPACE} {path}`, or bring the .sig along with the bundle."
        )
    asked = ["-Y", "verify", "-f", str(allowed), "-I", identity, "-n", NAMESPACE, "-s", str(place)]
    with path.open("rb") as content:
        done = _ssh_keygen(asked, content)
    if done.returncode:
        raise InputError(
            f"{path}: its signature is not one of {identity} by a key in {allowed}, or it was changed after it was "
            f"signed: {_said(done)}. Do not install it; get it again from the one who built it, with its .sig."
        )
    return " ".join(done.stdout.split())


def _ssh_keygen(asked: list[str], content: BinaryIO | None = None) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            ["ssh-keygen", *asked],
            stdin=content or subprocess.DEVNULL,
            capture_output=True,
            text=True,
            # without a terminal and a display, so that it cannot wait for a passphrase
            start_new_session=True,
            env=os.environ | {"SSH_ASKPASS_REQUIRE": "never", "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise StageError(
            "ssh-keygen is not installed, and signatures are made and verified by it. Install OpenSSH 8.2 or later: "
            "apt-get install openssh-client."
        ) from None


def _said(done: "subprocess.CompletedProcess[str]") -> str:
    return " ".join((done.stderr or done.stdout).split()).rstrip(".") or f"ssh-keygen ended with {done.returncode}"


def _read_manifest(tar: BinaryIO, path: Path, members: Mapping[str, Member]) -> tuple[BundleManifest, str]:
    """bundle.json, and the digest that it must have."""
    own = members.get(MANIFEST)
    if own is None or next(iter(members)) != MANIFEST or own.size_bytes > _MANIFEST_ROOM:
        raise InputError(f"{path} is no bundle: its first file is not bundle.json. `snakemake bundles` makes them.")
    tar.seek(own.start)
    content = tar.read(own.size_bytes)
    if _is_without_schema(content):
        raise InputError(
            f"{path} was made by an older version of repnets, whose bundle.json this one does not read. Build it "
            "again: snakemake bundles."
        )
    manifest = documents.parse(BundleManifest, content, f"{path}: bundle.json", damaged(path))
    if not all(ustar.is_part(name) for name in (manifest.model, manifest.target)):
        raise InputError(f"{path}: bundle.json names no model or target as it must. {DISTRUST}")
    return manifest, digest(json.loads(content))


def _require_fields(path: Path, manifest: BundleManifest) -> None:
    """What bundle.json says can be: files that the bundle holds, sizes, and the one command that a device is given."""
    folders = {str(folder) for name in manifest.files for folder in PurePosixPath(name).parents}
    named = [name for case in manifest.golden for name in (case.input, case.output)]
    wrong = {
        "backend": not ustar.is_part(manifest.backend),
        "file": manifest.file not in manifest.files.keys() | folders - {"."},
        "sha256_of_file": manifest.sha256_of_file != _held(manifest).get(manifest.file),
        "run": manifest.run not in COMMANDS,
        "golden": not set(named) <= manifest.files.keys(),
        "time_limit_s": not 0 < manifest.time_limit_s <= _LONGEST_S,
        "tolerance": not 0 <= manifest.tolerance < math.inf,
        "input": not all(size > 0 for size in manifest.input.shape),
        "output": not all(size > 0 for one in (manifest.output, *manifest.outputs) for size in one.shape),
    }
    if field := next((name for name, is_wrong in wrong.items() if is_wrong), None):
        value = quoted(getattr(manifest, field))
        raise InputError(f"{path}: `{field}` in bundle.json, {value}, is not what a bundle can have. {DISTRUST}")


def _require_checked(path: Path, manifest: BundleManifest) -> None:
    """The check that a bundle tells of was of the file in it, and of the programs in its lineage."""
    held = _held(manifest) | {name: getattr(manifest.lineage, name) for name in ("fused", "quantized", "verify")}
    for name, sha256 in manifest.checked.subjects.items():
        if held.get(name) not in (None, sha256):
            raise InputError(f"{path}: its check was of another {name} than the bundle holds or names. {DISTRUST}")


def _held(manifest: BundleManifest) -> dict[str, str]:
    """Digests of what a bundle holds, by path; of a network that is a folder, also that of the folder."""
    folder = f"{manifest.file}/"
    parts = {
        name.removeprefix(folder): facts.sha256 for name, facts in manifest.files.items() if name.startswith(folder)
    }
    package = {manifest.file: folder_digest(parts)} if parts else {}
    return {name: facts.sha256 for name, facts in manifest.files.items()} | package


def _is_without_schema(content: bytes) -> bool:
    """Whether this is a bundle.json from before its keys had a version."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and "format" in document and "schema" not in document


def _facts(content: Path | bytes) -> FileFacts:
    if isinstance(content, bytes):
        return FileFacts(hashlib.sha256(content).hexdigest(), len(content))
    with content.open("rb") as file:
        return FileFacts(hashlib.file_digest(file, "sha256").hexdigest(), content.stat().st_size)
