"""How far a build is: a bar on a terminal, a line now and then elsewhere."""

import os
import time
from contextlib import suppress
from types import TracebackType
from typing import Any

_SECONDS_A_LINE = 10


class Progress:
    """Shows the phases of a build; each has so many steps, and they nest.

    On a terminal it is one bar over the steps of all the phases that have begun, which goes away at the
    end. Elsewhere it is a line when a phase begins, one each `every_seconds` at most, so that a quick build
    says nothing. A terminal that goes away does not stop the build.

    Args:
        what: is built.
        descriptor: of the file to write to.
        every_seconds: between two lines.
    """

    def __init__(self, what: str, descriptor: int, every_seconds: float = _SECONDS_A_LINE) -> None:
        self._what = what
        self._file = os.fdopen(os.dup(descriptor), "w")
        self._every = every_seconds
        self._begin = self._told = time.monotonic()
        self._left: dict[str, int] = {}  # steps to come, of each phase that has begun
        self._bar: Any = None
        if self._file.isatty():
            from tqdm import tqdm

            form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}"
            self._bar = tqdm(total=0, desc=what, file=self._file, leave=False, bar_format=form)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError, ValueError):
            if self._bar is not None:
                self._bar.close()
            self._file.close()

    def start(self, phase: str, steps: int) -> None:
        """A phase begins."""
        self._left[phase] = self._left.get(phase, 0) + steps
        with suppress(OSError, ValueError):
            if self._bar is not None:
                self._bar.total += steps
                self._bar.set_description_str(f"{self._what}: {phase}")
            elif time.monotonic() - self._told >= self._every:
                self._told = time.monotonic()
                print(f"{self._what}: {phase}, {self._told - self._begin:.0f} s", file=self._file, flush=True)

    def step(self, phase: str) -> None:
        """One step of a phase is done."""
        if self._left.get(phase, 0) > 0:
            self._left[phase] -= 1
            self._advance(1)

    def finish(self, phase: str) -> None:
        """A phase ends, be its steps done or not."""
        self._advance(self._left.pop(phase, 0))

    def _advance(self, steps: int) -> None:
        with suppress(OSError, ValueError):
            if self._bar is not None:
                self._bar.update(steps)
