"""The files that a user asked Snakemake for: a name that no rule makes is answered with the nearest that one does."""

import difflib
import os
import re
import sys
from collections.abc import Sequence
from itertools import product
from typing import Any

from pipeline.config.project import Config
from pipeline.errors import InputError, quoted

_OTHER_FILES = (
    *("--archive", "--cleanup-metadata", "--directory", "-d", "--export-cwl", "--generate-unit-tests", "--report"),
    *("--report-metadata", "--runtime-profile", "--shadow-prefix"),
)
_WILDCARD = re.compile(r"{(\w+)[^{}]*}")


def require_known(workflow: Any, read: Config, argv: Sequence[str]) -> None:
    """End the process with exit code 2 where a file is asked for that no rule makes. Snakemake itself would not say
    which name was meant.

    Args:
        workflow: Snakemake's, with all rules. It does not know yet what it is asked for.
        read: the configuration, which gives models and targets.
        argv: Snakemake's arguments. With an option that takes files which need not be there, nothing is looked at.
    """
    if any(word.partition("=")[0] in _OTHER_FILES for word in argv):
        return
    for name in argv:
        if not name.startswith(("artifacts/", "targets/")) or os.path.lexists(name):
            continue
        if not any(rule.is_producer(name) for rule in workflow.rules):
            close = difflib.get_close_matches(name, _made(workflow, read), n=1)
            hint = f"Did you mean `{close[0]}`?" if close else "`snakemake --dry-run all` lists what is made."
            print(f"error: no rule makes `{quoted(name)}`. {hint}", file=sys.stderr)
            raise SystemExit(InputError.exit_code)


def _made(workflow: Any, read: Config) -> list[str]:
    """The files that rules make, of every model and target."""
    found = []
    for rule in workflow.rules:
        for pattern in map(str, rule.output):
            names = dict.fromkeys(_WILDCARD.findall(pattern))
            choices = {"model": list(read.models), "target": list(read.targets)}
            for values in product(*(choices.get(one, []) for one in names)):
                given = dict(zip(names, values, strict=True))
                found.append(_WILDCARD.sub(lambda match, given=given: given[match[1]], pattern))
    return found
