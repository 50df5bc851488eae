"""Tables and paragraphs, on a terminal and in Markdown that reads well there."""

import textwrap
from collections.abc import Collection, Mapping, Sequence


def aligned(rows: Sequence[Sequence[str]], *, figures: bool = False) -> str:
    """Rows of cells in columns of equal width, two spaces between them.

    Args:
        rows: of equal length, at least one.
        figures: align all columns but the first to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def cell(text: str, column: int) -> str:
        return text.rjust(widths[column]) if figures and column else text.ljust(widths[column])

    return "\n".join("  ".join(cell(text, column) for column, text in enumerate(row)).rstrip() for row in rows)


def table(left: Collection[str], rows: Sequence[Mapping[str, str]]) -> str:
    """Rows as a Markdown table with aligned columns.

    Args:
        left: names of the columns that are aligned to the left; figures go to the right.
        rows: cells by the name of their column, in order; at least one row, all with the same names.
    """
    names = list(rows[0])
    width = {name: max(len(name), *(len(row[name]) for row in rows)) for name in names}

    def line(cells: Mapping[str, str]) -> str:
        placed = [cells[name].ljust(width[name]) if name in left else cells[name].rjust(width[name]) for name in names]
        return f"| {' | '.join(placed)} |"

    rule = {name: ("-" * width[name] if name in left else "-" * (width[name] - 1) + ":") for name in names}
    return "\n".join([line(dict(zip(names, names, strict=True))), line(rule), *map(line, rows)])


def wrapped(text: str, indent: str = "", *, first: str = "", width: int = 110) -> str:
    """A paragraph in lines of at most `width` characters; no word, path or command is broken.

    Args:
        text: its line ends and spaces do not count.
        indent: before every line but the first.
        first: before the first line.
        width: characters.
    """
    return textwrap.fill(
        text, width, initial_indent=first, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
