"""Where a file runs: on this machine, or on a device that ssh or adb reaches.

    local                   this machine
    ssh://user@host:port    through the system's own OpenSSH client; user and port may be left out, and the host may
                            be an alias of the user's ssh configuration
    adb:SERIAL              an Android device by its serial number, as `adb devices` lists it

`parse` gives a `Device`, which is the same for all three: `run`, `start`, `scratch`, `home`; `transfer` copies to and
from it. What differs is its link, one small module each. Nothing is installed on a device: a POSIX shell is enough.
"""

import re
from urllib.parse import urlsplit

from pipeline.devices import adb, local, ssh
from pipeline.devices.device import Device, Link
from pipeline.devices.shell import Completed
from pipeline.errors import InputError

__all__ = ["Completed", "Device", "Link", "parse"]

_FORMS = "`local`, `ssh://user@host:port` (or `ssh://` and an alias of your ssh configuration), or `adb:SERIAL`"
_SERIAL = re.compile(r"\w[\w.:-]*")
_HOST = re.compile(r"[\w:][\w.:%-]*")
_USER = re.compile(r"\w[\w.@\\-]*")


def parse(text: str) -> Device:
    """The device that a text names. Nothing is contacted, and no program is looked for.

    Args:
        text: ``local``, ``ssh://[user@]host[:port]`` or ``adb:SERIAL``.

    Raises:
        InputError: it is none of these, or holds a password.
    """
    if text == "local":
        return Device(text, local.Local())
    if text.startswith("adb:") and _SERIAL.fullmatch(text[4:]):
        return Device(text, adb.Adb(text[4:]))
    if text.startswith("ssh://"):
        return Device(text, _ssh(text))
    raise InputError(f"`{text}` names no device. Give {_FORMS}.")


def _ssh(text: str) -> ssh.Ssh:
    try:
        parts = urlsplit(text)
        user, host, port = parts.username, parts.hostname, parts.port
    except ValueError as error:
        raise InputError(f"`{text}` is no address of a device ({error}). Give {_FORMS}.") from None
    if parts.password is not None:
        raise InputError(
            f"the address of the device at {host} holds a password, which is neither used nor kept. Leave it out and "
            f"let the device know your key: ssh-copy-id {user}@{host}"
        )
    # urlsplit lowers the host, and an alias may have capitals
    host = host and parts.netloc[parts.netloc.lower().rindex(host) :][: len(host)]
    rest = parts.path.strip("/") + parts.query + parts.fragment
    if not host or rest or not _HOST.fullmatch(host) or (user is not None and not _USER.fullmatch(user)):
        raise InputError(f"`{text}` is no address of a device. Give {_FORMS}.")
    return ssh.Ssh(host, user, port)
