"""Install a bundle on a device: copy it, verify and test it there, and only then make it current. And roll back.

If a step fails, the installed version stays as it was and the copied files are removed.
"""

import hashlib
import json
import math
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from pipeline.artifacts.bundle_result import BundleManifest
from pipeline.artifacts.export_result import FileFacts
from pipeline.deploy import bundle_file, installation, lock
from pipeline.deploy.installation import Entry, State
from pipeline.deploy.lock import LockedInstallation
from pipeline.devices import Device, transfer
from pipeline.errors import DeviceError, GateError, InputError, quoted

_GRACE_SECONDS = 60  # added to the time limit of the self-test's runtime
_Figure = Annotated[float, Field(ge=0, lt=math.inf)]
_Name = Annotated[str, AfterValidator(lambda text: text[:80])]
_VERDICTS = {0: "ok", 1: "failed", 3: "unavailable"}
_SPARE_BYTES = 1 << 20


@dataclass(frozen=True)
class Shipped:
    """The result of an installation or a rollback.

    Attributes:
        name: ``<model>-<target>``.
        folder: that contains the link `current`, on the device.
        entry: the current version.
        before: the version that was current before; None if nothing was installed.
        kept: versions that a rollback can return to, the latest first.
        warning: what went wrong after the switch.
    """

    name: str
    folder: str
    entry: Entry
    before: str | None
    kept: tuple[str, ...]
    warning: str | None = None


def ship(
    path: Path,
    device: Device,
    *,
    allowed_signers: Path | None = None,
    selftest: bool = True,
    python: str = "python3",
    timeout: float | None = None,
    say: Callable[[str], None] = print,
) -> Shipped:
    """Install a bundle.

    Args:
        path: of the bundle, a .tar.
        device: to install on.
        allowed_signers: OpenSSH's file of that name; one of its signers must have signed the bundle.
        selftest: run the bundle's self-test on the device before the switch.
        python: the Python on the device that runs the self-test.
        timeout: of the self-test, seconds; default: one minute more than the time limit of its runtime.
        say: called with a line of text after each step.

    Raises:
        InputError: the bundle is damaged or not safe to unpack; it is not signed by an allowed signer.
        GateError: the self-test failed on the device.
        DeviceError: the device cannot be reached, is full, is locked by another `repnets ship`, or has no runtime for
            the self-test; the link was cut; the self-test did not end.
    """
    bundle = bundle_file.open_bundle(path)
    manifest = bundle.manifest
    signed_by = signer(path, allowed_signers) if allowed_signers else None
    name, version = f"{manifest.model}-{manifest.target}", manifest.digest[:12]
    size = path.stat().st_size
    signed = f", signed by {signed_by}" if signed_by else ""
    say(f"{path.name}: whole, {len(manifest.files)} files, {size / 1e6:.1f} MB{signed}")
    with _locked(device, name) as locked:
        before = locked.state
        locked.require_room(2 * size + _SPARE_BYTES)
        transfer.push(device, path, f"{locked.incoming}.tar")
        own = {bundle_file.MANIFEST: hashlib.sha256(bundle.read(bundle_file.MANIFEST)).hexdigest()}
        _require_same(locked, locked.incoming, locked.unpack(), _digests(manifest.files) | own)
        say(f"{device.name}: copied, and every digest is right")
        limit = timeout or manifest.time_limit_s + _GRACE_SECONDS
        verdict = _selftest(locked, manifest, python, limit) if selftest else None
        say(f"{device.name}: self-test {_summary(verdict)}")
        entry = Entry(version, manifest.digest, installation.now(), installation.who(), signed_by, verdict)
        history = before.after(entry)
        locked.switch(entry, history)
        after = State(name, version, (*before.versions, version), history)
        try:
            locked.prune(after)
        except DeviceError as error:
            return _shipped(locked, after, before, f"older versions were not removed: {error}")
        return _shipped(locked, after, before, None)


def roll_back(name: str, device: Device) -> Shipped:
    """Make the version before the current one current again.

    Args:
        name: ``<model>-<target>``.
        device: where it is installed.

    Raises:
        InputError: nothing of that name is installed there, or there is no earlier version.
        DeviceError: as `ship`; the earlier version is damaged.
    """
    there = [state.name for state in installation.look(device)]
    if name not in there:
        raise InputError(
            f"{name} is not installed on {device.name}; there is: {quoted(', '.join(there)) or 'nothing'}."
        )
    with _locked(device, name) as locked:
        before = locked.state
        entry = before.previous
        if entry is None:
            raise InputError(
                f"{device.name} has no version of {name} from before {before.current}, so there is nothing to go back "
                "to. Ship the bundle that you want."
            )
        place = f"{locked.folder}/versions/{entry.version}"
        _require_same(locked, place, locked.digests(place), _digests_shipped(locked, place, entry))
        locked.roll_back(entry)
        return _shipped(locked, State(name, entry.version, before.versions, before.history), before, None)


@contextmanager
def _locked(device: Device, name: str) -> Iterator[LockedInstallation]:
    """Lock an installation; an error in the block says in which state the installation is now."""
    locked = None
    try:
        with lock.acquire(device, name) as locked:
            yield locked
    except (DeviceError, GateError) as error:
        if locked is None:
            raise
        raise _with_state(error, device, locked.state) from error


def _with_state(error: DeviceError | GateError, device: Device, before: State) -> DeviceError | GateError:
    try:
        now = next((state for state in installation.look(device) if state.name == before.name), State(before.name))
    except DeviceError:
        state = f"See what is current, once the link is back: repnets devices {device.name}"
    else:
        stays = f"{now.current} stays current" if now.current else "nothing is installed"
        state = f"Of {before.name}, {stays} there."
        if now.current != before.current:
            state = f"By then {now.current} had become the current one; to go back: --rollback."
    text = f"{str(error).rstrip()} {state}"
    return GateError(text) if isinstance(error, GateError) else DeviceError(text, is_cut=error.is_cut)


def _shipped(locked: LockedInstallation, state: State, before: State, warning: str | None) -> Shipped:
    names = [entry.version for entry in state.history]
    kept = tuple(name for name in names[: names.index(state.current)][::-1] if name in state.versions)
    return Shipped(state.name, locked.folder, state.entry(state.current), before.current, kept, warning)


def signer(path: Path, allowed_signers: Path) -> str:
    """The allowed signer who signed a bundle. InputError if none of them did."""
    command = [
        "ssh-keygen",
        "-Y",
        "find-principals",
        "-s",
        str(bundle_file.signature_of(path)),
        "-f",
        str(allowed_signers),
    ]
    try:
        found = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout.split("\n")[0]
    except FileNotFoundError:
        found = ""  # the next call reports that it is missing
    bundle_file.verify_signature(path, allowed_signers, found or "anybody")
    return found


def _digests(files: Mapping[str, FileFacts]) -> dict[str, str]:
    return {path: facts.sha256 for path, facts in files.items()}


def _require_same(locked: LockedInstallation, folder: str, there: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """DeviceError if a wanted file on the device has another sha256. Other files may be there, from a self-test say."""
    if wrong := [path for path, digest in wanted.items() if there.get(path) != digest]:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise DeviceError(
            f"in {folder} on {locked.device.name}, {', '.join(wrong[:5])}{more} {'is' if len(wrong) == 1 else 'are'} "
            "not what the bundle holds. The device's memory or disk may be failing, or another program writes there. "
            "Ship it again."
        )


def _digests_shipped(locked: LockedInstallation, place: str, entry: Entry) -> dict[str, str]:
    """The sha256 of each file of an installed version, by its bundle.json, which must be the one that was shipped.

    An older version of repnets may have shipped it, so no more than this is read.
    """
    done = locked.device.run(["cat", f"{place}/{bundle_file.MANIFEST}"])
    try:
        document = json.loads(done.stdout)
        if bundle_file.digest(document) == entry.digest:
            return {path: facts["sha256"] for path, facts in document["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise DeviceError(
        f"{place}/{bundle_file.MANIFEST} on {locked.device.name} is damaged, so that version cannot be gone back to. "
        "Ship the bundle that you want."
    )


def _selftest(locked: LockedInstallation, manifest: BundleManifest, python: str, timeout: float) -> dict[str, Any]:
    """Run the self-test of the unpacked bundle; its result.

    Raises:
        GateError: it failed, or printed no result.
        DeviceError: the device lacks what it needs; it did not end in time.
    """
    program, *rest = manifest.run
    words = [python if program == "python3" else program, *rest]
    line = 'cd "$1" && shift && PYTHONDONTWRITEBYTECODE=1 exec "$@"'
    device = locked.device
    try:
        done = device.run(installation.script(line, locked.incoming, *words), timeout=timeout)
    except DeviceError as error:
        if error.is_cut:
            raise
        raise DeviceError(f"the self-test was ended: {error} --timeout gives it longer.") from error
    verdict = _verdict(done.stdout)
    status = verdict.get("status")
    said = verdict.get("reason") or " ".join((done.stderr or done.stdout).split())[-300:] or "nothing"
    if done.returncode in (126, 127) or _VERDICTS.get(done.returncode) == status == "unavailable":
        lacks = f"there is no {words[0]}" if done.returncode in (126, 127) else str(said).rstrip(".")
        raise DeviceError(
            f"the self-test cannot run on {device.name}: {lacks}. Install what it needs (repnets doctor {device.name} "
            "says how), name another Python there with --python, or ship untested with --no-selftest."
        )
    if _VERDICTS.get(done.returncode) != status or status != "ok":
        raise GateError(
            f"the self-test failed on {device.name}, exit code {done.returncode}: {str(said).rstrip('.')}. The file "
            "does not compute there what it did where it was checked; compare the versions of the runtime "
            f"(repnets doctor {device.name})."
        )
    return verdict


@dataclass(frozen=True)
class _Verdict:
    """What a self-test prints last, as docs/bundles.md has it. Other keys are not kept."""

    status: Literal["ok", "failed", "unavailable"]
    reason: Annotated[str | None, AfterValidator(lambda text: text and text[:500])] = None
    max_error: _Figure | None = None
    tolerance: _Figure | None = None
    images: Annotated[int, Field(ge=0, lt=1e9)] = 0
    runtime: _Name | None = None
    version: _Name | None = None


def _verdict(printed: str) -> dict[str, Any]:
    """The verdict in the last line, by its keys; empty if there is none that can be."""
    line = printed.strip().rpartition("\n")[2]
    try:
        return vars(TypeAdapter(_Verdict).validate_json(line))
    except ValidationError:
        return {}


def _summary(verdict: Mapping[str, Any] | None) -> str:
    if verdict is None:
        return "left out"
    figures = ((key.replace("_", " "), verdict.get(key)) for key in ("max_error", "tolerance", "images"))
    about = [f"{name} {value:.2g}" for name, value in figures if value is not None]
    runtime = " ".join(verdict[key] for key in ("runtime", "version") if verdict.get(key))
    return ", ".join(["ok", *about, *([runtime] if runtime else [])])
