"""One installation on a device, held by this process alone, and changed.

The lock is the kernel's (flock), of a process on the device: it ends with the process, so none is ever stale. The
process reads what this computer sends it every few seconds, and where that stops, the link having been cut or this
computer having died, it removes what was half copied and ends.
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
from pipeline.errors import DeviceError, InputError

_BEAT_SECONDS = 5.0
_LONG_SECONDS = 600  # to unpack, to read or to remove what is large
_SILENCE_SECONDS = 60  # after which a holder takes the other side for dead
_NAME = re.compile(r"[\w.-]+")

# 9>&9: Android's shell keeps its own descriptors from the programs that it starts.
_HOLD = (
    installation.TELL
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
(cd .. && tell "${1##*/}")
printf 'df %s\n' "$(df -Pk . | tail -n 1)"
echo held
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

# A link is replaced by rename(2): `mv -T` does that, but Android's refuses where the old link is one to a folder, and
# there `ln -sfn` does. (BusyBox's `ln -sfn` would take the old link away first.)
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

# What can fail for want of room comes first, and a link was replaced once for trial. A version that is there already is
# replaced file by file, each in one step: it may be the current one.
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

_BACK = (
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
class Held:
    """One installation, held by this process alone.

    Attributes:
        device, name: where, and of what.
        token: of this hold; files of that name belong to it.
        state: what was installed when it began.
        free_bytes: on the disk there, then; None where the device does not say.
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
        """Where a bundle is unpacked first; the bundle itself goes beside it."""
        return f"{self.folder}/.incoming-{self.token}"

    def require_room(self, size_bytes: int) -> None:
        """Raises DeviceError where the disk there has less left."""
        if self.free_bytes is not None and self.free_bytes < size_bytes:
            raise DeviceError(
                f"{self.device.name} has no room: {self.free_bytes / 1e6:.1f} MB are left in {self.folder}, and this "
                f"takes {size_bytes / 1e6:.1f} MB while it is unpacked. Make room there (df -h shows where)."
            )

    def unpack(self) -> dict[str, str]:
        """Unpack `incoming`.tar to `incoming`; what is there then, as `digests` tells it."""
        return _digests(self.device.output(installation.script(_UNPACK, self.incoming), timeout=_LONG_SECONDS))

    def digests(self, folder: str) -> dict[str, str]:
        """Sha256 of every file below a folder there, by its path in it."""
        return _digests(self.device.output(installation.script(_DIGESTS, folder), timeout=_LONG_SECONDS))

    def switch(self, entry: Entry, history: Sequence[Entry]) -> None:
        """Make what was unpacked a version, and the current one. Until the very last step nothing is changed."""
        content = json.dumps([vars(one) for one in history]).encode()
        told = installation.script(_SWITCH, self.folder, self.token, entry.version)
        self._changed(told, self.device.run(told, timeout=_LONG_SECONDS, input=content))

    def back(self, entry: Entry) -> None:
        """Make an older version the current one."""
        told = installation.script(_BACK, self.folder, self.token, entry.version)
        self._changed(told, self.device.run(told))

    def prune(self, state: State) -> None:
        """Remove the versions that are not in the history any more."""
        kept = {entry.version for entry in state.history} | {state.current}
        if old := [version for version in state.versions if version not in kept]:
            self.device.output(installation.script(_PRUNE, self.folder, *old), timeout=_LONG_SECONDS)

    def _changed(self, told: Sequence[str], done: Any) -> None:
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
            raise self.device.failure(shlex.join(told[4:]), done)


def _digests(said: str) -> dict[str, str]:
    lines = [line.partition("  ") for line in said.splitlines()]
    return {path.removeprefix("./"): digest for digest, _, path in lines}


@contextmanager
def hold(device: Device, name: str) -> Iterator[Held]:
    """Hold the installation of one model and target, so that nobody else changes it.

    When this ends, or the link does, or this computer dies, the device removes what was half copied.

    Raises:
        DeviceError: somebody else holds it, with who and since when; the device cannot lock, or not be reached.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"`{name}` cannot be the name of a folder on a device; give one that `repnets devices` lists.")
    held = Held(device, name, uuid.uuid4().hex[:12], State(name))
    told = shlex.join(
        installation.script(
            _HOLD, held.folder, held.token, f"{installation.who()}, {installation.now()}", str(_SILENCE_SECONDS)
        )
    )
    with tempfile.TemporaryFile("w+") as stderr:
        try:
            holder = subprocess.Popen(
                device.link.argv(told), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True,
                start_new_session=True,
            )  # fmt: skip
        except FileNotFoundError:
            raise DeviceError(device.link.missing()) from None
        ended = threading.Event()
        with holder:
            beating = threading.Thread(target=_beat, args=(holder, ended), daemon=True)
            beating.start()
            too_late = threading.Timer(_SILENCE_SECONDS, holder.kill)
            too_late.start()
            try:
                said = []
                while (line := holder.stdout.readline()) and line != "held\n":
                    said.append(line.rstrip("\n"))
                too_late.cancel()
                if not line:
                    code = holder.wait()
                    stderr.seek(0)
                    raise _refused(held, code, said, stderr.read())
                yield replace(held, state=_state(said, held), free_bytes=_free_bytes(said))
            finally:
                too_late.cancel()
                ended.set()
                was_lost = holder.poll() is not None
                with suppress(OSError, ValueError):
                    holder.stdin.close()
                beating.join()
                with suppress(subprocess.TimeoutExpired):
                    holder.wait(_SILENCE_SECONDS)
                holder.kill()
                if was_lost:  # it cleaned up when the link went; a copy that was tried again came after that
                    with suppress(DeviceError):
                        device.run(installation.script('rm -rf "$1" "$1".*', held.incoming))


def _state(said: Sequence[str], held: Held) -> State:
    return next(iter(installation.read([line for line in said if not line.startswith("df ")], held.device)), held.state)


def _free_bytes(said: Sequence[str]) -> int | None:
    """Of what df prints: the file system, its size, used, available in KiB; a name of it may hold spaces."""
    found = re.search(r"^df .* \d+ +\d+ +(\d+) +\d+%", "\n".join(said), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _beat(holder: subprocess.Popen[str], ended: threading.Event) -> None:
    with suppress(OSError, ValueError):  # the holder is gone, or its input was closed
        while not ended.wait(_BEAT_SECONDS):
            holder.stdin.write(".")
            holder.stdin.flush()


def _refused(held: Held, code: int, said: Sequence[str], words: str) -> DeviceError:
    device = held.device
    if trouble := device.explain(code, words):
        return trouble
    if code == 75:
        holder = said[1] if len(said) > 1 else "somebody"
        process = f" (process {said[2]} there)" if len(said) > 2 and said[2] else ""
        return DeviceError(
            f"another ship to {device.name} holds {held.name} now: {holder}{process}. Wait until it has ended, and "
            f"ship again. If that computer is gone for good, its lock goes by itself within {_SILENCE_SECONDS} s."
        )
    if code == 77:
        return DeviceError(
            f"{device.name} has neither flock nor Python 3, so two ships could not be kept apart. Install util-linux "
            "or BusyBox there, or Python 3."
        )
    return DeviceError(
        f"nothing can be installed in {held.folder} on {device.name}: "
        f"{' '.join(words.split()) or f'exit code {code}'}. See to the rights of that folder, and to its disk."
    )
