"""What a network gives, by name and as rows of numbers."""

from collections import OrderedDict

import pytest
import torch

from repnets.errors import RepnetsError
from repnets.outputs import Balanced, named, rows, widths
from repnets.relative_error import relative_error

A, B = torch.arange(12.0).view(2, 3, 2), torch.tensor([[1.0], [2.0]])


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (A, [""]),
        ((A, B), ["output_0", "output_1"]),
        ([A, (B, A)], ["output_0", "output_1_0", "output_1_1"]),
        ({"boxes": A, "maps": [B, A]}, ["boxes", "maps_0", "maps_1"]),
        (OrderedDict(out=A, aux=B), ["out", "aux"]),
        ({"a b": A, "ü": B}, ["a_b", "_"]),
    ],
)
def test_names_are_keys_and_places(given, names):
    assert list(named(given)) == names


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": A, "n": 3}, "a int at `n`"),
        ((A, None), "a NoneType at `output.1`"),
        ([], "no tensor"),
        ({"a_b": A, "a": [B], "a_0": A}, "two outputs of the network are named `a_0`"),
    ],
)
def test_what_has_no_name_is_refused(given, message):
    with pytest.raises(RepnetsError, match=message):
        named(given)


def test_rows_hold_all_outputs_of_an_image():
    assert rows(A).equal(A.flatten(1)) and rows(B) is not A
    assert rows({"a": A, "b": B}).equal(torch.cat([A.flatten(1), B], 1)) and widths({"a": A, "b": B}) == [6, 1]
    assert rows((A, B[:, 0].long())).shape == (2, 7)


def test_several_outputs_weigh_alike_and_their_scales_stay():
    made = Balanced()
    first = made({"large": 1000 * A + 7, "small": B})
    for part in first.split([6, 1], 1):
        assert part.square().mean(0).sum() == pytest.approx(1, rel=1e-5) and part.mean() == pytest.approx(0, abs=1e-6)
    assert made({"large": 1000 * A + 7, "small": B + 0.5})[:, :6].equal(first[:, :6])
    assert (made({"large": 1000 * A + 7, "small": B + 0.5})[:, 6] - first[:, 6]).tolist() == pytest.approx([1, 1])


def test_of_a_large_output_some_numbers_stand_for_all():
    wide = torch.arange(2 * 200_000.0).view(2, 200_000)
    thin = Balanced()(wide)
    assert thin.shape == (2, 50_000) and thin[1].equal(wide[1, ::4])
    assert Balanced()(B) is not None and Balanced()(B).equal(B)


def test_an_output_that_does_not_vary_is_not_blown_up():
    made = Balanced()
    made({"centres": torch.full((2, 8), 100.0), "scores": B})
    moved = made({"centres": torch.full((2, 8), 100.00001), "scores": B})
    assert moved[:, :8].abs().max() < 1e-3


def test_errors_are_of_each_output_s_own_largest_value():
    assert relative_error({"a": 1000 * A, "b": B + 0.5}, {"a": 1000 * A, "b": B}) == pytest.approx(0.25)
    assert relative_error((A, B * float("nan")), (A, B)) != 0
    assert torch.tensor(relative_error((A, B * float("nan")), (A, B))).isnan()
