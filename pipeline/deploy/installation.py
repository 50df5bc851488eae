"""What lies on a device after `repnets ship`, as its shell tells it. No Python is needed there.

    <home>/<model>-<target>/
        versions/<digest12>/    the unpacked bundles, the last few
        current                 a symbolic link to one of them, replaced in one step
        history.json            which were current, oldest first, when, by whom, and what their self-tests said
        lock                    held by one ship at a time; names who holds it, or held it last
        .incoming-<token>*      what a ship is bringing; gone when it ends, however it ends

`pipeline.deploy.lock` is what changes it.
"""

import getpass
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipeline.devices import Device
from pipeline.errors import DeviceError

KEPT = 3
"""Versions that stay beside the current one, to go back to."""

TELL = r"""
tell() {
    [ -d "$1/versions" ] || return 0
    printf 'name %s\n' "$1"
    printf 'current %s\n' "$(readlink "$1/current" 2> /dev/null)"
    for one in "$1"/versions/*; do [ ! -d "$one" ] || printf 'version %s\n' "${one##*/}"; done
    printf 'history %s\n' "$(cat "$1/history.json" 2> /dev/null)"
}
"""
"""A function of the shell: what is installed under the name ``$1``, in the folder that is current; `read` reads it."""

_LOOK = (
    TELL
    + r"""
cd "$1" 2> /dev/null || exit 0
for name in *; do tell "$name"; done
"""
)


@dataclass(frozen=True)
class Entry:
    """A version that was switched to.

    Attributes:
        version: the first twelve hex digits of the digest; the name of its folder.
        digest: of the bundle's content, sha256.
        since: when, UTC, ISO 8601.
        by: the user and computer that shipped it.
        signed_by: whose signature was verified; None where none was asked for.
        selftest: what it printed last; None where it was left out.
    """

    version: str
    digest: str
    since: str
    by: str
    signed_by: str | None = None
    selftest: dict[str, Any] | None = None


@dataclass(frozen=True)
class State:
    """What is installed of one model and target.

    Attributes:
        name: ``<model>-<target>``.
        current: the version that `current` leads to; None where it leads nowhere.
        versions: all that are there.
        history: those that were current, oldest first; those after the current one were taken back.
    """

    name: str
    current: str | None = None
    versions: tuple[str, ...] = ()
    history: tuple[Entry, ...] = field(default=())

    @property
    def previous(self) -> Entry | None:
        """What a rollback goes to: the last that was current before the current one and is still there."""
        names = [entry.version for entry in self.history]
        before = names.index(self.current) if self.current in names else len(names)
        return next((entry for entry in self.history[:before][::-1] if entry.version in self.versions), None)

    def entry(self, version: str | None) -> Entry | None:
        """What is known of a version."""
        return next((entry for entry in self.history if entry.version == version), None)

    def after(self, new: Entry) -> tuple[Entry, ...]:
        """The history once this one is current: what had been taken back is forgotten."""
        names = [entry.version for entry in self.history]
        upto = names.index(self.current) + 1 if self.current in names else len(names)
        return (*(entry for entry in self.history[:upto] if entry.version != new.version), new)[-KEPT - 1 :]


def home(device: Device) -> str:
    """Where installs go on a device: an absolute path. Raises DeviceError as `Device.home`, or where a shell greets."""
    place = device.home
    if not place.startswith("/") or "\n" in place:
        raise DeviceError(
            f"the shell on {device.name} prints `{place.splitlines()[0][:80] if place else ''}` where its home folder "
            "was asked for. Let its startup files (~/.bashrc, say) print nothing where it is not interactive."
        )
    return place


def look(device: Device) -> list[State]:
    """What is installed on a device, by name.

    Raises:
        DeviceError: the device cannot be asked; what it noted of its installs is damaged.
    """
    return read(device.output(script(_LOOK, home(device))).splitlines(), device)


def read(said: Sequence[str], device: Device) -> list[State]:
    """What `TELL` printed, line by line. Raises DeviceError where a history is damaged."""
    states: list[State] = []
    for line in said:
        key, _, value = line.partition(" ")
        if key == "name":
            states.append(State(value))
        elif states:
            states[-1] = _with(states[-1], key, value, device)
    return states


def _with(state: State, key: str, value: str, device: Device) -> State:
    about = dict(vars(state))
    if key == "current":
        about["current"] = value.rpartition("/")[2] or None
    elif key == "version":
        about["versions"] += (value,)
    elif key == "history" and value:
        try:
            about["history"] = tuple(Entry(**entry) for entry in json.loads(value))
        except (ValueError, TypeError) as error:
            raise DeviceError(
                f"{home(device)}/{state.name}/history.json on {device.name} is damaged ({error}), so it is not known "
                f"what was installed before. Remove that file there, and ship again; nothing else has to go."
            ) from None
    return State(**about)


def script(text: str, *words: str) -> list[str]:
    """The command that runs a script on a device, with its ``$1``, ``$2``, ..."""
    return ["sh", "-c", text, "sh", *words]


def who() -> str:
    """Of this computer, for others to read who ships."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        user = "somebody"
    return f"{user}@{platform.node() or 'a computer'}"


def now() -> str:
    """UTC, ISO 8601."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
