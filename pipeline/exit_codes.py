"""Errors as one paragraph and an exit code: 2 for input and configuration, 1 for a gate, stage or device."""

import sys
import traceback
from collections.abc import Callable

from pipeline.errors import DeviceError, GateError, InputError, StageError, shortened, shown
from repnets.errors import RepnetsError

_ERROR = "error: "


def answered(act: Callable[[], None], debug: bool) -> int:
    """Call a function, and turn its errors into one paragraph on stderr and an exit code.

    Args:
        act: the function.
        debug: also show the traceback.

    Returns:
        0; 2 for a mistake in the input or the configuration; 1 for a failed gate, stage or device; 130 after Ctrl-C.
    """
    try:
        act()
    except (InputError, GateError, StageError, DeviceError, RepnetsError) as error:
        if debug:
            traceback.print_exc()
        print(f"{_ERROR}{said(error)}", file=sys.stderr)
        return getattr(error, "exit_code", 2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except FileNotFoundError as error:
        if debug:
            traceback.print_exc()
        print(f"{_ERROR}{error.filename} does not exist. Build it first: snakemake {error.filename}", file=sys.stderr)
        return 2
    return 0


def reason_in(log: str) -> str:
    """Why a process ended whose errors went through `answered`: the last message in its log, on one line.

    Of one that crashed or was killed that is the last line.
    """
    lines = [shown(line) for line in log.rstrip().split("\n")]
    begins = [number for number, line in enumerate(lines) if line.startswith(_ERROR)]
    message = " ".join(lines[begins[-1] :]).removeprefix(_ERROR) if begins else lines[-1]
    return shortened(message) or "It ended without a message: it was killed, or the memory did not suffice."


def said(error: Exception) -> str:
    """The message of an error as it can be printed: names from files may be long, and hold what a terminal obeys."""
    return shortened("\n".join(map(shown, shortened(str(error)).split("\n"))))
