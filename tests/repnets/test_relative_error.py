"""One number says how far two tensors are apart, and a NaN is never close."""

import math

import pytest
import torch

from repnets.relative_error import relative_error


@pytest.mark.parametrize(
    ("got", "want", "error"),
    [([1.0, -4.0], [1.0, -5.0], 0.2), ([0.0, 0.0], [0.0, 0.0], 0.0), ([3.0], [3.0], 0.0)],
)
def test_largest_difference_of_the_largest_value(got, want, error):
    assert relative_error(torch.tensor(got), torch.tensor(want, dtype=torch.float64)) == pytest.approx(error)


@pytest.mark.parametrize(("got", "want"), [([math.nan, 1.0], [1.0, 1.0]), ([1.0, 1.0], [math.nan, 1.0])])
def test_a_nan_is_not_within_any_tolerance(got, want):
    assert not relative_error(torch.tensor(got), torch.tensor(want)) <= math.inf
