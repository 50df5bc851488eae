"""The page itself: sections in order, in one file that asks for nothing else.

A content security policy forbids every request and every script but the two that are written here, by their digests, so
that nothing that comes from a file can run even if it were not escaped; jinja2 escapes all of it.
"""

import base64
import hashlib
from pathlib import Path

from pipeline.report.page import javascript
from pipeline.report.page.built import Built
from pipeline.report.page.content import Section
from pipeline.report.page.sections import (
    conditions,
    errors,
    latency,
    layers,
    pictures,
    quantization,
    summary,
    tradeoffs,
    training,
)

_FOLDER = Path(__file__).parent


def render(built: Built) -> str:
    """The page, as HTML; the same bytes for the same documents.

    Args:
        built: what it shows.
    """
    import jinja2

    found = sections(built)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    scripts = [_safe(javascript.bundle()), _safe((_FOLDER / "page.js").read_text())]
    return environment.get_template("page.html").render(
        sections=found,
        specs={
            f"{section.name}-{place}": chart.spec for section in found for place, chart in enumerate(section.charts)
        },
        style=(_FOLDER / "page.css").read_text(),
        scripts=scripts,
        digests=[_digest(script) for script in scripts],
        versions=javascript.versions(),
    )


def sections(built: Built) -> list[Section]:
    """All sections that have something to show, in order."""
    structure, samples = pictures.sections(built)
    found = [
        summary.failed(built),
        summary.section(built),
        tradeoffs.section(built),
        latency.section(built),
        layers.section(built),
        structure,
        layers.left_as_they_are(built),
        errors.section(built),
        quantization.section(built),
        training.section(built),
        samples,
        summary.proofs(built),
        conditions.unavailable(built),
        conditions.section(built),
        conditions.lineage(built),
    ]
    return [section for section in found if section]


def _safe(script: str) -> str:
    """A script as it can stand in a page, with the line ends that a browser hashes."""
    return "\n" + script.replace("\r\n", "\n").replace("</script", "<\\/script").replace("<!--", "<\\!--") + "\n"


def _digest(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
