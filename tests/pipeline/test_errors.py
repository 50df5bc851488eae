"""How messages quote what they speak of."""

import pytest

from pipeline import errors


@pytest.mark.parametrize("name, shown", [("a\udce9", r"a\udce9"), ("a\nb", r"a\nb"), ("größe", "größe")])
def test_names_are_shown_escaped(name, shown):
    assert errors.shown(name) == shown
