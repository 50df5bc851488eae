"""An Android device behind the system's own adb, over a cable or the network."""

import re
from dataclasses import dataclass
from pathlib import Path

_ABSENT = r"device '.*' not found|device offline|no devices/emulators found|device still (?:authorizing|connecting)"
_CUT = r"closed|protocol fault.*|failed to read copy response.*|connection reset.*"
_OTHER = r"device unauthorized.*|insufficient permissions.*|more than one device.*|cannot connect to daemon.*"
_TROUBLE = re.compile(rf"^(?:adb: )?(?:error: )?({_ABSENT}|{_CUT}|{_OTHER})\.?$", re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True)
class Adb:
    """The link to a device by its serial number, or by host:port where adb is connected over the network."""

    serial: str
    shell_home: str = "/data/local/tmp/repnets"

    def argv(self, line: str) -> list[str]:
        """The argv that runs a shell line there. -T: no terminal, so that bytes are not changed."""
        return ["adb", "-s", self.serial, "shell", "-T", line]

    def push_argv(self, source: Path, place: str) -> list[str]:
        """The argv that copies one file to the device."""
        return ["adb", "-s", self.serial, "push", str(source), place]

    def pull_argv(self, place: str, target: Path) -> list[str]:
        """The argv that copies one file from the device."""
        return ["adb", "-s", self.serial, "pull", place, str(target)]

    def trouble(self, returncode: int, said: str) -> tuple[str, bool] | None:
        """The link's error with its remedy, and whether the link was cut; None if there is no error."""
        found = _TROUBLE.findall(said) if returncode else []
        if not found:  # output of a command on the device can begin with "error: " too
            return None
        what = found[-1].rstrip(".")
        if "unauthorized" in what:
            return (
                f"the Android device {self.serial} has not allowed this computer. Unlock it and accept the question "
                "on its screen; if there is none: adb kill-server, then plug it in anew.",
                False,
            )
        if re.fullmatch(_ABSENT, what, re.IGNORECASE):
            return (
                f"adb does not reach the device {self.serial}: {what}. Switch on USB debugging in its developer "
                f"options, plug it in, and see what is listed: adb devices -l",
                False,
            )
        if re.fullmatch(_CUT, what, re.IGNORECASE):
            return (
                f"the link to the Android device {self.serial} was cut ({what}). See to the cable, and run again.",
                True,
            )
        return f"adb to {self.serial} failed: {what}. Try by hand: adb -s {self.serial} shell", False

    def missing(self) -> str:
        """The message for a missing adb."""
        return (
            f"`adb` is not on PATH, and the device {self.serial} is reached through it. Install Android's platform "
            "tools (Debian: apt-get install adb)."
        )
