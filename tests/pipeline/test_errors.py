"""How messages quote what they speak of."""

import pytest

from pipeline import errors, exit_codes


@pytest.mark.parametrize("name, shown", [("a\udce9", r"a\udce9"), ("a\nb", r"a\nb"), ("größe", "größe")])
def test_names_are_shown_escaped(name, shown):
    assert errors.shown(name) == shown


def test_a_long_message_keeps_its_beginning_and_its_end(capsys):
    def act():
        raise errors.InputError(f"what is wrong: {'x' * 10_000_000}\x1b. How to mend it.")

    assert exit_codes.answered(act, False) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: what is wrong: x") and said.endswith(r"x\x1b. How to mend it." + "\n")
    assert len(said) <= errors.MESSAGE + len("error: \n")


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
