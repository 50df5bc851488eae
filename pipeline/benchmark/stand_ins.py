"""Which figures of the runtime that stands in for one that is not on this machine bench.json tells."""

from dataclasses import replace

from pipeline import backends
from pipeline.artifacts.bench_result import Reference, ReferenceResult
from pipeline.errors import InputError


def precision_of(precision: str) -> str:
    """The precision in which a stand-in runs a network for a target of this one."""
    return "int8" if precision == "int8" else "fp32"


def reference(figures: ReferenceResult, form_names: list[str]) -> Reference:
    """`reference` of a bench.json.

    Args:
        figures: a reference.json; or the bench.json of a target that is the same measurement, whose files' sizes and
            digests are left out.
        form_names: the forms that the target has, the one that ships first.

    Raises:
        InputError: these are other forms, or nothing was measured.
    """
    if list(figures.forms) != form_names or not figures.runs:
        raise InputError(
            f"the reference is of {', '.join(figures.forms)} in {len(figures.runs)} runs, but this target has "
            f"{', '.join(form_names)}. Build it with the same configuration: `python -m pipeline reference`."
        )
    return Reference(
        runtime=backends.load(figures.backend).title,
        precision=figures.precision,
        forms={name: replace(one, sha256=None, size_bytes=None) for name, one in figures.forms.items()},
        speedup=figures.speedup,
        runs=figures.runs,
        power=figures.power,
        sustained=figures.sustained,
    )
