"""What a section of the page is made of. All texts are plain; the template escapes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """A table with a caption.

    Attributes:
        caption: what it shows, with units.
        rows: cells by the name of their column, all with the same names; the first column names the row.
        left: columns that are aligned to the left, besides the first; figures go to the right.
    """

    caption: str
    rows: Sequence[Mapping[str, str]]
    left: Sequence[str] = ()

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in order."""
        return list(self.rows[0]) if self.rows else []


@dataclass(frozen=True)
class Chart:
    """A chart, and the same figures as a table, for those who do not see it or have no JavaScript.

    Attributes:
        caption: what it shows.
        spec: of Vega-Lite.
        figures: what is drawn.
    """

    caption: str
    spec: Mapping[str, Any]
    figures: Table


@dataclass(frozen=True)
class Picture:
    """A picture that can be enlarged.

    Attributes:
        caption: what it shows; also its alternative text.
        address: a `data:` address.
    """

    caption: str
    address: str


@dataclass(frozen=True)
class Facts:
    """The headline of one model.

    Attributes:
        title: name of the model.
        figures: labels and their values, the most important first.
    """

    title: str
    figures: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        name: its anchor.
        title: its heading.
        text: paragraphs before the rest.
        facts, charts, pictures, tables: what it shows, in this order.
        notes: remarks at the end.
    """

    name: str
    title: str
    text: Sequence[str] = ()
    facts: Sequence[Facts] = ()
    charts: Sequence[Chart] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
