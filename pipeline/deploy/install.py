"""A bundle to a device: copied, verified there, tested there, and only then made the current one; and taken back.

A step that fails leaves what was installed as it was, and nothing half copied behind it.
"""

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artifacts.bundle_result import BundleManifest
from pipeline.artifacts.export_result import FileFacts
from pipeline.deploy import bundle_file, installation, lock
from pipeline.deploy.installation import Entry, State
from pipeline.deploy.lock import Held
from pipeline.devices import Device, transfer
from pipeline.errors import DeviceError, GateError, InputError

_GRACE_SECONDS = 60  # beside what the self-test allows its runtime
_VERDICTS = {0: "ok", 1: "failed", 3: "unavailable"}
_SPARE_BYTES = 1 << 20


@dataclass(frozen=True)
class Shipped:
    """What is current now.

    Attributes:
        name: ``<model>-<target>``.
        folder: where `current` is, on the device.
        entry: what is current.
        before: the version that was, None where nothing was installed.
        kept: versions that can be gone back to, the nearest first.
        warning: something that went wrong after the switch.
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
        device: where to.
        allowed_signers: ssh's file of that name; the bundle's signature has to be of somebody in it.
        selftest: run the bundle's own on the device before the switch.
        python: the program there that the self-test runs on.
        timeout: seconds that the self-test may take; default: a minute more than it allows its runtime by itself.
        say: told of each step.

    Raises:
        InputError: the bundle is damaged or not safe to unpack; it is not signed, or by nobody who is allowed.
        GateError: the self-test failed on the device.
        DeviceError: the device cannot be reached, is full, is being shipped to by somebody else, has no runtime for the
            self-test; the link was cut; the self-test did not end.
    """
    bundle = bundle_file.open_bundle(path)
    manifest = bundle.manifest
    signed_by = signer(path, allowed_signers) if allowed_signers else None
    name, version = f"{manifest.model}-{manifest.target}", manifest.digest[:12]
    size = path.stat().st_size
    signed = f", signed by {signed_by}" if signed_by else ""
    say(f"{path.name}: whole, {len(manifest.files)} files, {size / 1e6:.1f} MB{signed}")
    with _held(device, name) as held:
        before = held.state
        held.require_room(2 * size + _SPARE_BYTES)
        transfer.push(device, path, f"{held.incoming}.tar")
        own = {bundle_file.MANIFEST: hashlib.sha256(bundle.read(bundle_file.MANIFEST)).hexdigest()}
        _require_same(held, held.incoming, held.unpack(), _digests(manifest.files) | own)
        say(f"{device.name}: copied, and every digest is right")
        limit = timeout or manifest.time_limit_s + _GRACE_SECONDS
        verdict = _selftest(held, manifest, python, limit) if selftest else None
        say(f"{device.name}: self-test {_told(verdict)}")
        entry = Entry(version, manifest.digest, installation.now(), installation.who(), signed_by, verdict)
        history = before.after(entry)
        held.switch(entry, history)
        after = State(name, version, (*before.versions, version), history)
        try:
            held.prune(after)
        except DeviceError as error:
            return _shipped(held, after, before, f"older versions were not removed: {error}")
        return _shipped(held, after, before, None)


def roll_back(name: str, device: Device) -> Shipped:
    """Make the version current again that was before.

    Args:
        name: ``<model>-<target>``.
        device: where.

    Raises:
        InputError: nothing of that name is installed there, or nothing was before it.
        DeviceError: as `ship`; the older version is damaged.
    """
    there = [state.name for state in installation.look(device)]
    if name not in there:
        raise InputError(f"{name} is not installed on {device.name}; there is: {', '.join(there) or 'nothing'}.")
    with _held(device, name) as held:
        before = held.state
        entry = before.previous
        if entry is None:
            raise InputError(
                f"{device.name} has no version of {name} from before {before.current}, so there is nothing to go back "
                "to. Ship the bundle that you want."
            )
        place = f"{held.folder}/versions/{entry.version}"
        _require_same(held, place, held.digests(place), _digests_shipped(held, place, entry))
        held.back(entry)
        return _shipped(held, State(name, entry.version, before.versions, before.history), before, None)


@contextmanager
def _held(device: Device, name: str) -> Iterator[Held]:
    """Hold an installation; an error says in what state it was left."""
    held = None
    try:
        with lock.hold(device, name) as held:
            yield held
    except (DeviceError, GateError) as error:
        if held is None:
            raise
        raise _with_state(error, device, held.state) from error


def _with_state(error: DeviceError | GateError, device: Device, before: State) -> DeviceError | GateError:
    try:
        now = next((state for state in installation.look(device) if state.name == before.name), State(before.name))
    except DeviceError:
        told = f"See what is current, once the link is back: repnets devices {device.name}"
    else:
        stays = f"{now.current} stays current" if now.current else "nothing is installed"
        told = f"Of {before.name}, {stays} there."
        if now.current != before.current:
            told = f"By then {now.current} had become the current one; to go back: --rollback."
    text = f"{str(error).rstrip()} {told}"
    return GateError(text) if isinstance(error, GateError) else DeviceError(text, is_cut=error.is_cut)


def _shipped(held: Held, state: State, before: State, warning: str | None) -> Shipped:
    names = [entry.version for entry in state.history]
    kept = tuple(name for name in names[: names.index(state.current)][::-1] if name in state.versions)
    return Shipped(state.name, held.folder, state.entry(state.current), before.current, kept, warning)


def signer(path: Path, allowed_signers: Path) -> str:
    """Whose signature a bundle has, of those in the file. Raises InputError where it is of none of them."""
    told = [
        "ssh-keygen",
        "-Y",
        "find-principals",
        "-s",
        str(bundle_file.signature_of(path)),
        "-f",
        str(allowed_signers),
    ]
    try:
        found = subprocess.run(told, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout.split("\n")[0]
    except FileNotFoundError:
        found = ""  # what is missing, the next line says
    bundle_file.verify_signature(path, allowed_signers, found or "anybody")
    return found


def _digests(files: Mapping[str, FileFacts]) -> dict[str, str]:
    return {path: facts.sha256 for path, facts in files.items()}


def _require_same(held: Held, folder: str, there: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Hold the sha256 of files on the device against those wanted. Others may lie beside: what a self-test leaves."""
    if wrong := [path for path, digest in wanted.items() if there.get(path) != digest]:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise DeviceError(
            f"in {folder} on {held.device.name}, {', '.join(wrong[:5])}{more} {'is' if len(wrong) == 1 else 'are'} not "
            "what the bundle holds. The device's memory or disk may be failing, or another program writes there. Ship "
            "it again."
        )


def _digests_shipped(held: Held, place: str, entry: Entry) -> dict[str, str]:
    """The sha256 of each file of an installed version, by its bundle.json, which must be the one that was shipped.

    An older version of repnets may have shipped it, so no more than this is read.
    """
    done = held.device.run(["cat", f"{place}/{bundle_file.MANIFEST}"])
    try:
        document = json.loads(done.stdout)
        if bundle_file.digest(document) == entry.digest:
            return {path: facts["sha256"] for path, facts in document["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise DeviceError(
        f"{place}/{bundle_file.MANIFEST} on {held.device.name} is damaged, so that version cannot be gone back to. "
        "Ship the bundle that you want."
    )


def _selftest(held: Held, manifest: BundleManifest, python: str, timeout: float) -> dict[str, Any]:
    """Run a bundle's own test where it was unpacked; what it printed last.

    Raises:
        GateError: it failed, or said nothing that can be read.
        DeviceError: what it needs is not there, or it did not end.
    """
    program, *rest = manifest.run
    words = [python if program == "python3" else program, *rest]
    line = 'cd "$1" && shift && PYTHONDONTWRITEBYTECODE=1 exec "$@"'
    device = held.device
    try:
        done = device.run(installation.script(line, held.incoming, *words), timeout=timeout)
    except DeviceError as error:
        if error.is_cut:
            raise
        raise DeviceError(f"the self-test was ended: {error} --timeout gives it longer.") from error
    verdict = _last_json(done.stdout)
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


def _last_json(printed: str) -> dict[str, Any]:
    lines = printed.strip().splitlines()
    try:
        found = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _told(verdict: Mapping[str, Any] | None) -> str:
    if verdict is None:
        return "left out"
    figures = ((key.replace("_", " "), verdict.get(key)) for key in ("max_error", "tolerance", "images"))
    about = [f"{name} {value:.2g}" for name, value in figures if isinstance(value, int | float)]
    runtime = " ".join(str(verdict[key]) for key in ("runtime", "version") if verdict.get(key))
    return ", ".join(["ok", *about, *([runtime] if runtime else [])])
