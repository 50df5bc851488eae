"""The lock of one installation on a device, and the changes that are made under it.

The lock is an flock of a process on the device. It ends with the process, so it is never stale. This computer sends the
process a heartbeat every few seconds. When the heartbeats stop, because the link was cut or this computer died, the
process removes what was half copied, and ends.
"""

import json
import re
import shlex
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from pipeline.deploy import installation
from pipeline.deploy.installation import Entry, State
from pipeline.devices import Device
from pipeline.devices.shell import read_back
from pipeline.devices.watch import MOST_BYTES, kill, watched
from pipeline.errors import DeviceError, InputError, quoted

_HEARTBEAT_SECONDS = 5.0
_LONGEST_SECONDS = 86_400  # that a lock is kept
_LONG_SECONDS = 600  # for unpacking, reading or removing large files
_SILENCE_SECONDS = 60  # without a heartbeat, after which the process on the device ends
_LINE = 65_536  # characters of a line of the description of an installation

# 9>&9: Android's shell does not pass its own descriptors on to the programs that it starts.
_LOCK = (
    installation.STATE_FUNCTION
    + r"""
trap '' HUP INT TERM PIPE
cd "$1" 2> /dev/null || mkdir -p "$1" && cd "$1" || exit 73
exec 9>> lock || exit 73
if command -v flock > /dev/null; then flock -n 9 9>&9
else python3 -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 9>&9 2> /dev/null; fi
code=$?
case "$code" in
    0) ;;
    1) cat lock; exit 75;;
    126 | 127) exit 77;;
    *) exit 73;;
esac
printf '%s\n' "$2" "$3" "$$" > lock || exit 73
rm -rf .incoming-*
(cd .. && print_state "${1##*/}")
printf 'df %s\n' "$(df -Pk . | tail -n 1)"
echo locked
exec 2> /dev/null
if command -v timeout > /dev/null; then
    while [ "$(timeout "$4" head -c 1 9>&-)" ]; do :; done
else cat > /dev/null; fi
: > lock
rm -rf ".incoming-$2"* || { sleep 1; rm -rf ".incoming-$2"*; }
"""
)

_DIGESTS = r"""
cd "$1" || exit 1
if command -v sha256sum > /dev/null; then find . -type f -exec sha256sum {} +
else find . -type f -exec shasum -a 256 {} +; fi
"""

_UNPACK = (
    r"""
mkdir "$1" && tar -xf "$1.tar" -C "$1" && rm -f "$1.tar" || exit 1
"""
    + _DIGESTS
)

# A link is replaced by rename(2). `mv -T` does that, but Android's refuses to replace a link to a folder; its `ln -sfn`
# does it instead. (BusyBox's `ln -sfn` removes the old link first.)
_REPLACE = r"""
replace() {
    mv -fT "$1" "$2" 2> /dev/null && return 0
    case "$(readlink "$(command -v ln)")" in
        *toybox*) ln -sfn "$(readlink "$1")" "$2" && rm -f "$1" && return 0;;
    esac
    python3 -c 'import os, sys; os.replace(*sys.argv[1:])' "$1" "$2" 2> /dev/null
}
cd "$1" || exit 1
[ "$(sed -n 1p lock)" = "$2" ] || exit 76
new=".incoming-$2"
mkdir -p versions && ln -s "versions/$3" "$new.link" && ln -s versions "$new.try" && ln -s versions "$new.old" || exit 1
replace "$new.try" "$new.old" || exit 78
"""

# What can fail on a full disk comes first, and replacing a link has been tried by then. A version that is installed
# already is replaced file by file, each in one step, because it may be the current one.
_SWITCH = (
    _REPLACE
    + r"""
cat > "$new.history" || exit 1
if [ -d "versions/$3" ]; then
    (cd "$new" && find . -type d) | while read -r one; do mkdir -p "versions/$3/$one" || exit 1; done || exit 1
    (cd "$new" && find . -type f) | while read -r one; do mv -f "$new/$one" "versions/$3/$one" || exit 1; done || exit 1
else
    mv "$new" "versions/$3" || exit 1
fi
mv -f "$new.history" history.json || exit 1
replace "$new.link" current
"""
)

_ROLL_BACK = (
    _REPLACE
    + r"""
[ -d "versions/$3" ] && replace "$new.link" current
"""
)

_PRUNE = r"""
cd "$1/versions" || exit 1
shift
for one in "$@"; do rm -rf "./$one"; done
"""


@dataclass(frozen=True)
class LockedInstallation:
    """One installation, locked for this process.

    Attributes:
        device: where it is.
        name: ``<model>-<target>``.
        token: of this lock; the names of its temporary files contain it.
        state: what was installed when the lock was acquired.
        free_bytes: on the device's disk at that time; None if the device does not say.
    """

    device: Device
    name: str
    token: str
    state: State
    free_bytes: int | None = None

    @property
    def folder(self) -> str:
        """On the device."""
        return f"{installation.home(self.device)}/{self.name}"

    @property
    def incoming(self) -> str:
        """Folder that a bundle is unpacked to first; the tar is copied to the same path with ``.tar``."""
        return f"{self.folder}/.incoming-{self.token}"

    def require_room(self, size_bytes: int) -> None:
        """DeviceError if the device's disk has less free space."""
        if self.free_bytes is not None and self.free_bytes < size_bytes:
            raise DeviceError(
                f"{self.device.name} has no room: {self.free_bytes / 1e6:.1f} MB are left in {self.folder}, and this "
                f"takes {size_bytes / 1e6:.1f} MB while it is unpacked. Make room there (df -h shows where)."
            )

    def unpack(self) -> dict[str, str]:
        """Unpack `incoming`.tar to `incoming`, and return the `digests` of the unpacked files."""
        return _digests(self.device.output(installation.script(_UNPACK, self.incoming), timeout=_LONG_SECONDS))

    def digests(self, folder: str) -> dict[str, str]:
        """Sha256 of every file below a folder on the device, by its path in the folder."""
        return _digests(self.device.output(installation.script(_DIGESTS, folder), timeout=_LONG_SECONDS))

    def switch(self, entry: Entry, history: Sequence[Entry]) -> None:
        """Make the unpacked bundle the current version. The link `current` is replaced in the last step."""
        content = json.dumps([vars(one) for one in history]).encode()
        command = installation.script(_SWITCH, self.folder, self.token, entry.version)
        self._require_changed(command, self.device.run(command, timeout=_LONG_SECONDS, input=content))

    def roll_back(self, entry: Entry) -> None:
        """Make an older version current."""
        command = installation.script(_ROLL_BACK, self.folder, self.token, entry.version)
        self._require_changed(command, self.device.run(command))

    def prune(self, state: State) -> None:
        """Remove the versions that are no longer in the history."""
        kept = {entry.version for entry in state.history} | {state.current}
        if old := [version for version in state.versions if version not in kept]:
            self.device.output(installation.script(_PRUNE, self.folder, *old), timeout=_LONG_SECONDS)

    def _require_changed(self, command: Sequence[str], done: Any) -> None:
        if done.returncode == 76:
            raise DeviceError(
                f"the lock on {self.folder} was lost while the link to {self.device.name} was down, and another ship "
                "has it now. Ship again."
            )
        if done.returncode == 78:
            raise DeviceError(
                f"{self.device.name} has nothing that replaces a link in one step: its mv has no -T, and there is no "
                "Python 3. Install coreutils there, or Python 3."
            )
        if done.returncode:
            raise self.device.failure(shlex.join(command[4:]), done)


def _digests(printed: str) -> dict[str, str]:
    lines = [line.partition("  ") for line in printed.splitlines()]
    return {path.removeprefix("./"): digest for digest, _, path in lines}


@contextmanager
def acquire(device: Device, name: str) -> Iterator[LockedInstallation]:
    """Lock the installation of one model and target, so that no other process changes it.

    When the block ends, the link is cut or this computer dies, the device removes what was half copied.

    Raises:
        InputError: the name cannot be that of a folder.
        DeviceError: another process has the lock (the message says which, and since when); the device cannot be reached
            or has no program that locks.
    """
    if not installation.NAME.fullmatch(name):
        raise InputError(
            f"`{quoted(name)}` cannot be the name of a folder on a device; give one that `repnets devices` lists."
        )
    locked = LockedInstallation(device, name, uuid.uuid4().hex[:12], State(name))
    command = shlex.join(
        installation.script(
            _LOCK, locked.folder, locked.token, f"{installation.who()}, {installation.now()}", str(_SILENCE_SECONDS)
        )
    )
    with tempfile.TemporaryFile() as stderr:
        try:
            process = subprocess.Popen(
                device.link.argv(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True,
                errors="replace", start_new_session=True,
            )  # fmt: skip
        except FileNotFoundError:
            raise DeviceError(device.link.missing()) from None
        ended = threading.Event()
        with process:
            heartbeats = threading.Thread(target=_send_heartbeats, args=(process, ended), daemon=True)
            heartbeats.start()
            try:
                printed, left = [], MOST_BYTES
                with watched(process, (stderr,), _SILENCE_SECONDS) as watch:
                    while left > 0 and (line := process.stdout.readline(_LINE)) and line != "locked\n":
                        printed.append(line.rstrip("\n"))
                        left -= len(line)
                    code = None if line else process.wait()
                if watch.cause == "size" or left <= 0:
                    kill(process)
                    raise device.too_much(MOST_BYTES)
                if not line:
                    raise _refused(locked, code, printed, read_back(stderr))
                state, free_bytes = _state(printed, locked), _free_bytes(printed)
                with watched(process, (stderr,), _LONGEST_SECONDS):
                    yield replace(locked, state=state, free_bytes=free_bytes)
            finally:
                ended.set()
                was_lost = process.poll() is not None
                with suppress(OSError, ValueError):
                    process.stdin.close()
                heartbeats.join()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_SILENCE_SECONDS)
                process.kill()
                if was_lost:  # it removed the files when the link was cut; a later retry of the copy made them again
                    with suppress(DeviceError):
                        device.run(installation.script('rm -rf "$1" "$1".*', locked.incoming))


def _state(printed: Sequence[str], locked: LockedInstallation) -> State:
    return next(
        iter(installation.read([line for line in printed if not line.startswith("df ")], locked.device)), locked.state
    )


def _free_bytes(printed: Sequence[str]) -> int | None:
    """Read df's line: file system, size, used, available in KiB. The file system's name may contain spaces."""
    found = re.search(r"^df .* \d+ +\d+ +(\d{1,15}) +\d+%", "\n".join(printed), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _send_heartbeats(process: subprocess.Popen[str], ended: threading.Event) -> None:
    with suppress(OSError, ValueError):  # the process has ended, or its input was closed
        while not ended.wait(_HEARTBEAT_SECONDS):
            process.stdin.write(".")
            process.stdin.flush()


def _refused(locked: LockedInstallation, code: int, printed: Sequence[str], words: str) -> DeviceError:
    device = locked.device
    if trouble := device.explain(code, words):
        return trouble
    if code == 75:
        owner = quoted(printed[1]) if len(printed) > 1 else "somebody"
        process = f" (process {quoted(printed[2])} there)" if len(printed) > 2 and printed[2] else ""
        return DeviceError(
            f"another ship to {device.name} holds {locked.name} now: {owner}{process}. Wait until it has ended, and "
            f"ship again. If that computer is gone for good, its lock goes by itself within {_SILENCE_SECONDS} s."
        )
    if code == 77:
        return DeviceError(
            f"{device.name} has neither flock nor Python 3, so two ships could not be kept apart. Install util-linux "
            "or BusyBox there, or Python 3."
        )
    return DeviceError(
        f"nothing can be installed in {locked.folder} on {device.name}: "
        f"{quoted(words) or f'exit code {code}'}. See to the rights of that folder, and to its disk."
    )
