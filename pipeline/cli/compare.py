"""`repnets compare`: two builds, what got worse, and an exit code for CI."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pipeline.artifacts.manifest import write_json
from pipeline.config import yaml_file
from pipeline.errors import GateError, InputError, nearest
from pipeline.report.comparison import MEASURES, Row, changed_versions, read
from pipeline.report.comparison import compare as compared
from pipeline.report.text import table

HELP = """\
Compare two builds of a project, file by file, and print what changed as a Markdown table, for a pull request say.
BEFORE and AFTER are folders of projects that are built, or the report in one. To compare two commits, build each in a
folder of its own (git worktree add ../before main); with one store (REPNETS_STORE), what is the same is built once.

The measures, and how much worse each may get before it is a regression:
  operations, convolutions   of the file                                                       0 %
  outside                    operations outside the delegate, of ExecuTorch                    0
  int8                       layers in int8                                                    0 %
  macs, parameters           of the fused network                                              0 %
  size                       bytes that ship                                                   1 %
  metric                     accuracy, mean IoU, mAP: in points; PSNR: in dB                   1 point, 0.3 dB
  latency                    median; regressed only if the 95 % intervals do not meet as well  2 %
  memory                     peak                                                              10 %

Latency and memory are judged if both builds were measured on the same machine, and it was quiet. A file that the second
build lacks, or whose benchmark failed there, is a regression.

--limit NAME=VALUE sets a limit, for example latency=5%, metric=0.5, size=none; --limits FILE reads them from YAML
({latency: 5%, size: none}).

Exit code 0: no regression. 1: a regression. 2: a folder cannot be used.

examples:
  repnets compare ../before .
  repnets compare ../before . --limit size=none --limit latency=5% --json changes.json
"""


def compare(
    before: Path,
    after: Path,
    *,
    limit: Sequence[str] = (),
    limits: Path | None = None,
    document: Path | None = None,
) -> None:
    """Print what changed between two builds.

    Args:
        before, after: folders of projects, or a report in one.
        limit: ``NAME=VALUE`` each; they go before those of the file.
        limits: a YAML file of such.
        document: where to write the rows as JSON.

    Raises:
        InputError: a folder has no build; a limit is none.
        GateError: there is a regression.
    """
    allowed = {**(_from_file(limits) if limits else {}), **dict(map(_limit, limit))}
    old, new = read(before), read(after)
    rows = compared(old, new, allowed)
    versions = changed_versions(old, new)
    if document is not None:
        content = {"before": str(before), "after": str(after), "versions": versions, "rows": list(map(asdict, rows))}
        write_json(document, content)
    print(_text(rows, versions))
    if regressions := [row for row in rows if row.verdict == "regression"]:
        told = "; ".join(
            f"{one.measure} of {one.model} for {one.target} ({one.before} to {one.after})" for one in regressions
        )
        raise GateError(
            f"{len(regressions)} of {len(rows)} figures got worse than allowed: {told}. Where that is meant, raise the "
            "limit (--limit NAME=VALUE)."
        )


def _text(rows: Sequence[Row], versions: Sequence[str]) -> str:
    order = {"regression": 0, "worse": 1, "not judged": 2, "better": 3}
    told = sorted((row for row in rows if row.change), key=lambda row: order.get(row.verdict, 4))
    parts = []
    if told:
        left = ("model", "target", "measure", "verdict")
        parts.append(table(left, [_cells(row) for row in told]))
    count = len(rows) - len(told)
    parts.append(f"{count} of {len(rows)} figures are the same." if count else "Every figure changed.")
    if versions:
        parts.append(f"Versions: {', '.join(versions)}.")
    return "\n\n".join(parts)


def _cells(row: Row) -> dict[str, str]:
    verdict = f"**{row.verdict}**" if row.verdict == "regression" else row.verdict
    return {
        "model": row.model,
        "target": row.target,
        "measure": row.measure,
        "before": row.before,
        "after": row.after,
        "change": row.change,
        "verdict": f"{verdict}: {row.why}" if row.why else verdict,
    }


def _from_file(path: Path) -> dict[str, float]:
    return dict(_limit(f"{name}={value}") for name, value in yaml_file.read(path).items())


def _limit(text: str) -> tuple[str, float]:
    """`latency=5%` as a name and a share of one; of the metric in points or its own unit; `none` is infinity."""
    name, _, value = text.partition("=")
    if name not in MEASURES:
        raise InputError(
            f"there is no measure `{name}`{nearest(name, MEASURES)}; those with limits: {', '.join(MEASURES)}."
        )
    try:
        if value.strip() in ("none", "None"):
            return name, math.inf
        number = float(value.strip().removesuffix("%"))
        if not 0 <= number < math.inf:
            raise ValueError
    except ValueError:
        raise InputError(f"`{text}` is no limit. Write {name}=5%, or {name}=none for no limit.") from None
    return name, number / 100
