"""What `repnets ship` has installed on a device, read by the device's shell. The device needs no Python for it.

    <home>/<model>-<target>/
        versions/<digest12>/    the last few unpacked bundles
        current                 a symbolic link to one of them, replaced in one step
        history.json            the versions that were current, oldest first: when, by whom, result of the self-test
        lock                    locked by one `repnets ship` at a time; names the process that has or had the lock
        .incoming-<token>*      temporary files of a running `repnets ship`

`pipeline.deploy.lock` changes an installation.
"""

import getpass
import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipeline.artifacts import documents
from pipeline.devices import Device
from pipeline.errors import DeviceError, first_line, quoted

KEPT = 3
"""Older versions that are kept for a rollback."""
NAME = re.compile(r"(?!\.)[\w.-]{1,200}")
"""Of the folder of an installation, and of a version."""
MOST_LINES = 10_000
"""That the description of what is installed may have."""
_PATH = 1024  # characters of the folder of all installations

STATE_FUNCTION = r"""
print_state() {
    [ -d "$1/versions" ] || return 0
    printf 'name %s\n' "$1"
    printf 'current %s\n' "$(readlink "$1/current" 2> /dev/null)"
    for one in "$1"/versions/*; do [ ! -d "$one" ] || printf 'version %s\n' "${one##*/}"; done
    printf 'history %s\n' "$(cat "$1/history.json" 2> /dev/null)"
}
"""
"""A shell function that prints what is installed under the name ``$1`` in the working directory; `read` parses it."""

_LOOK = (
    STATE_FUNCTION
    + r"""
cd "$1" 2> /dev/null || exit 0
for name in *; do print_state "$name"; done
"""
)


@dataclass(frozen=True)
class Entry:
    """A version that was switched to.

    Attributes:
        version: the first twelve hex digits of the digest; also the name of its folder.
        digest: sha256 of the bundle's content.
        since: time of the switch, UTC, ISO 8601.
        by: the user and computer that shipped it.
        signed_by: the signer whose signature was verified; None if none was required.
        selftest: the result that the self-test printed; None if it was not run.
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
        current: the version that the link `current` points to; None if there is no link.
        versions: all installed versions.
        history: the versions that were current, oldest first; those after the current one were rolled back.
    """

    name: str
    current: str | None = None
    versions: tuple[str, ...] = ()
    history: tuple[Entry, ...] = field(default=())

    @property
    def previous(self) -> Entry | None:
        """The target of a rollback: the latest version that was current before this one and is still installed."""
        names = [entry.version for entry in self.history]
        before = names.index(self.current) if self.current in names else len(names)
        return next((entry for entry in self.history[:before][::-1] if entry.version in self.versions), None)

    def entry(self, version: str | None) -> Entry | None:
        """The history entry of a version, None if it has none."""
        return next((entry for entry in self.history if entry.version == version), None)

    def after(self, new: Entry) -> tuple[Entry, ...]:
        """The history with a new current version; versions that had been rolled back are removed from it."""
        names = [entry.version for entry in self.history]
        upto = names.index(self.current) + 1 if self.current in names else len(names)
        return (*(entry for entry in self.history[:upto] if entry.version != new.version), new)[-KEPT - 1 :]


def home(device: Device) -> str:
    """The folder for installations on a device, an absolute path.

    Raises:
        DeviceError: as `Device.home`; the device's shell prints a greeting.
    """
    place = device.home
    if not place.startswith("/") or not place.isprintable() or len(place) > _PATH:
        first = quoted((place.splitlines() or [""])[0][:80])
        raise DeviceError(
            f"the shell on {device.name} prints `{first}` where its home folder was asked for. Let its startup files "
            "(~/.bashrc, say) print nothing where it is not interactive."
        )
    return place


def look(device: Device) -> list[State]:
    """All that is installed on a device.

    Raises:
        DeviceError: the device cannot be reached; a history.json is damaged.
    """
    return read(device.output(script(_LOOK, home(device))).splitlines(), device)


def read(printed: Sequence[str], device: Device) -> list[State]:
    """Parse the lines that `STATE_FUNCTION` printed; folders that `repnets ship` did not name are left out.

    Raises:
        DeviceError: a history is damaged; there are more lines than any installation has.
    """
    if len(printed) > MOST_LINES:
        raise device.no_answer(f"more than {MOST_LINES} lines where it is asked what is installed")
    states: list[State] = []
    for line in printed:
        key, _, value = line.partition(" ")
        if key == "name":
            states.append(State(value))
        elif states:
            states[-1] = _with(states[-1], key, value, device)
    return [state for state in states if NAME.fullmatch(state.name)]


def _with(state: State, key: str, value: str, device: Device) -> State:
    about = dict(vars(state))
    if key == "current" and NAME.fullmatch(version := value.rpartition("/")[2]):
        about["current"] = version
    elif key == "version" and NAME.fullmatch(value):
        about["versions"] += (value,)
    elif key == "history" and value:
        try:
            about["history"] = tuple(_entry(entry) for entry in json.loads(value))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise DeviceError(
                f"{home(device)}/{quoted(state.name)}/history.json on {device.name} is damaged ({first_line(error)}), "
                "so it is not known what was installed before. Remove that file there, and ship again; nothing else "
                "has to be removed."
            ) from None
    return State(**about)


def _entry(values: Mapping[str, Any]) -> Entry:
    entry = documents.of(Entry, values)
    if not NAME.fullmatch(entry.version):
        raise ValueError(f"`{quoted(entry.version)}` is no version")
    return entry


def script(text: str, *words: str) -> list[str]:
    """The argv that runs a shell script on a device with ``$1``, ``$2``, ..."""
    return ["sh", "-c", text, "sh", *words]


def who() -> str:
    """User and name of this computer, for messages on other computers."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        user = "somebody"
    return f"{user}@{platform.node() or 'a computer'}"


def now() -> str:
    """The current time, UTC, ISO 8601."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
