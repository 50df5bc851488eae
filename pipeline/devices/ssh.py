"""A device behind the system's own OpenSSH client, with the user's configuration, agent, jump hosts and known hosts.

The user's options are overridden only where they would make a run hang, prompt or forward ports. An unknown host key is
never accepted here: it is refused, and the message has the command to inspect it. `REPNETS_SSH` may contain another
command than `ssh`, with options (`ssh -F my_config`), as GIT_SSH_COMMAND does for git.
"""

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.devices.shell import last_line
from pipeline.errors import InputError

CONNECT_SECONDS = 10
_ALIVE_SECONDS = 5
_OPTIONS = (
    "BatchMode=yes",  # no prompt for a password, passphrase or host key
    f"ConnectTimeout={CONNECT_SECONDS}",
    f"ServerAliveInterval={_ALIVE_SECONDS}",  # detects a link that fails silently
    "ServerAliveCountMax=3",
    "ClearAllForwardings=yes",  # of the user's configuration: several connections would want the same port
    "PermitLocalCommand=no",
    "RemoteCommand=none",
    "RequestTTY=no",
    "LogLevel=INFO",  # its messages are parsed by `trouble`
)
_UNKNOWN_KEY = re.compile(r"host key is known|Host key verification failed|authenticity of host")
_CHANGED_KEY = re.compile(r"REMOTE HOST IDENTIFICATION HAS CHANGED|host key .* has changed", re.IGNORECASE)
_REFUSED = re.compile(r"Permission denied \(([\w,-]*)\)|Too many authentication failures")
_UNREACHABLE = re.compile(
    r"Could not resolve|Connection refused|timed out during|connect to (?:host|address) .*|No route to host"
    r"|Network is unreachable|Name or service not known|kex_exchange_identification.*|banner exchange.*"
)
_CUT = re.compile(r"closed by|reset by|Broken pipe|not responding|Connection to .* closed|disconnect|corrupted MAC")


@dataclass(frozen=True)
class Ssh:
    """The link to a host.

    Attributes:
        host: a name, an address, or an alias of the user's configuration.
        user, port: None for the configuration's.
    """

    host: str
    user: str | None = None
    port: int | None = None
    shell_home: str = "${HOME:?}/.local/share/repnets"

    def argv(self, line: str) -> list[str]:
        """The argv that runs a shell line there, in `sh`, whatever the user's shell on the device is."""
        options = [part for option in _OPTIONS for part in ("-o", option)]
        port = ["-p", str(self.port)] if self.port else []
        return [*_client(), "-T", *options, *port, self._destination(), f"exec sh -c {shlex.quote(line)}"]

    def push_argv(self, source: Path, place: str) -> Sequence[str] | None:
        """None: files are copied through the shell, because not every device has sftp."""
        return None

    def pull_argv(self, place: str, target: Path) -> Sequence[str] | None:
        """None: files are copied through the shell."""
        return None

    def trouble(self, returncode: int, said: str) -> tuple[str, bool] | None:
        """The link's error with its remedy, and whether the link was cut; None if there is no error."""
        if returncode != 255:  # ssh's own
            return None
        by_hand = self._by_hand()
        if _CHANGED_KEY.search(said):
            return (
                f"{self.host} has another host key than the one that your known_hosts holds, so it may be another "
                f"machine, and nothing was sent to it. If you set it up anew, forget the old key and look at the new "
                f"one: ssh-keygen -R {shlex.quote(self._known_as())} and then: {by_hand}",
                False,
            )
        if _UNKNOWN_KEY.search(said):
            return (
                f"the host key of {self.host} is not in your known_hosts, so nothing tells that it is your device, and "
                f"nothing was sent to it. Log in once by hand, compare the fingerprint that ssh shows with the "
                f"device's own (on the device: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), and accept it: "
                f"{by_hand}",
                False,
            )
        if found := _REFUSED.search(said):
            asks = {"password", "keyboard-interactive"} & set((found[1] or "").split(","))
            why = "accepts none of your keys"
            if asks:
                why += " and asks for a password, which is never typed here"
            return (
                f"{self.host} {why}. Let it know your key: ssh-copy-id {self._ssh_words()}. If it does, see to it that "
                f"your agent holds the key (ssh-add -l), or name it in ~/.ssh/config; `{by_hand}` has to work without "
                f"a question.",
                False,
            )
        if _UNREACHABLE.search(said):
            return (
                f"{self.host} cannot be reached: {last_line(said)}. See to it that the device is on, in this "
                f"network, and that its ssh server runs; then try by hand: {by_hand}",
                False,
            )
        if not said.strip() or _CUT.search(said):
            return (
                f"the link to {self.host} was cut{f' ({last_line(said)})' if said.strip() else ''}. What ran there "
                f"for this ended with it. See to the cable or network, and that the device did not reboot or run out "
                f"of memory; then run again.",
                True,
            )
        return f"ssh to {self.host} failed: {last_line(said)}. Try by hand: {by_hand}", False

    def missing(self) -> str:
        """The message for a missing client."""
        return (
            f"`{_client()[0]}` is not on PATH, and {self.host} is reached through it. Install OpenSSH's client "
            "(Debian: apt-get install openssh-client), or set REPNETS_SSH to the command that you use."
        )

    def _destination(self) -> str:
        return f"{self.user}@{self.host}" if self.user else self.host

    def _ssh_words(self) -> str:
        return f"-p {self.port} {self._destination()}" if self.port else self._destination()

    def _by_hand(self) -> str:
        return f"{os.environ.get('REPNETS_SSH') or 'ssh'} {self._ssh_words()}"

    def _known_as(self) -> str:
        return f"[{self.host}]:{self.port}" if self.port and self.port != 22 else self.host


def _client() -> list[str]:
    named = os.environ.get("REPNETS_SSH") or "ssh"
    try:
        argv = shlex.split(named)
    except ValueError as error:
        raise InputError(f"REPNETS_SSH is `{named[:80]}`, which is no command ({error}). Close its quotes.") from None
    if not argv:
        raise InputError("REPNETS_SSH names no command. Unset it, or set it to the ssh that you use.")
    return argv
