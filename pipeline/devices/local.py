"""This machine as a device, with the same shell lines as any other."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.devices.facts_script import JETPACK


def find_program(name: str) -> str | None:
    """Path of a program on this machine: on PATH, or in JetPack's folder; None if it is not installed."""
    return shutil.which(name) or shutil.which(name, path=JETPACK)


@dataclass(frozen=True)
class Local:
    """The link to this machine, which cannot be cut."""

    shell_home: str = "${HOME:?}/.local/share/repnets"

    def argv(self, line: str) -> list[str]:
        """The argv that runs a shell line here."""
        return ["sh", "-c", line]

    def push_argv(self, source: Path, place: str) -> Sequence[str] | None:
        """None: files are copied through the shell."""
        return None

    def pull_argv(self, place: str, target: Path) -> Sequence[str] | None:
        """None: files are copied through the shell."""
        return None

    def trouble(self, returncode: int, said: str) -> tuple[str, bool] | None:
        """None: there is no link that could break."""
        return None

    def missing(self) -> str:
        """What to do where the link's own program is not found."""
        return "this machine has no POSIX shell `sh` on PATH."
