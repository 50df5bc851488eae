"""Which figures of the runtime that stands in for one that is not on this machine bench.json tells."""

from collections.abc import Mapping
from typing import Any

from pipeline import backends
from pipeline.errors import InputError

FIGURES = ("forms", "speedup", "runs", "power", "sustained")
"""What `measurement.measure` gives."""

_OF_THE_FILE = ("size_bytes", "sha256")


def precision_of(precision: str) -> str:
    """The precision in which a stand-in runs a network for a target of this one."""
    return "int8" if precision == "int8" else "fp32"


def reference(figures: Mapping[str, Any], form_names: list[str]) -> dict[str, Any]:
    """`reference` of a bench.json.

    Args:
        figures: a reference.json; or the bench.json of a target that is the same measurement, whose files' sizes and
            digests are left out.
        form_names: the forms that the target has, the one that ships first.

    Raises:
        InputError: these are other forms, or nothing was measured.
    """
    if list(figures["forms"]) != form_names or not figures["runs"]:
        raise InputError(
            f"the reference is of {', '.join(figures['forms'])} in {len(figures['runs'])} runs, but this target has "
            f"{', '.join(form_names)}. Build it with the same configuration: `python -m pipeline reference`."
        )
    forms = {
        name: {key: value for key, value in entry.items() if key not in _OF_THE_FILE}
        for name, entry in figures["forms"].items()
    }
    return {
        "runtime": backends.load(figures["backend"]).title,
        "precision": figures["precision"],
        **{name: figures[name] for name in FIGURES},
        "forms": forms,
    }
