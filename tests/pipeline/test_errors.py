"""How messages quote what they speak of."""

import pytest

from pipeline import errors


@pytest.mark.parametrize("name, shown", [("a\udce9", r"a\udce9"), ("a\nb", r"a\nb"), ("größe", "größe")])
def test_names_are_shown_escaped(name, shown):
    assert errors.shown(name) == shown


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyError(101), "KeyError: 101"),
        (EOFError(), "EOFError"),
        (ValueError("\n it is cut short.\nmore"), "it is cut short"),
    ],
)
def test_the_first_line_of_an_error_says_something(error, line):
    assert errors.first_line(error) == line
