"""R2, which stands in the place of accuracy where a network has no classes."""

import numpy as np
import pytest
import torch

from pipeline.models import accuracy
from pipeline.models.accuracy import share_right

WANT = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)


def kept_variance(got, want, widths) -> float:
    return accuracy.kept_variance(*(torch.from_numpy(one.astype(np.float64)).split(widths, 1) for one in (got, want)))


def test_it_is_the_coefficient_of_determination():
    from sklearn.metrics import r2_score

    got = WANT + 0.1 * np.random.default_rng(1).normal(size=WANT.shape)
    assert kept_variance(got, WANT, [6]) == pytest.approx(r2_score(WANT.ravel(), got.ravel()), abs=1e-12)
    assert kept_variance(WANT, WANT, [6]) == 1 and kept_variance(-WANT, WANT, [6]) == 0


def test_of_several_outputs_the_least_counts_whatever_their_size():
    got = WANT.copy()
    got[:, 5] = 0
    alone = kept_variance(got[:, 5:], WANT[:, 5:], [1])
    assert alone < 0.01 and kept_variance(got, WANT, [5, 1]) == alone
    assert kept_variance(got, WANT, [6]) > 0.8


@pytest.mark.parametrize(("moved", "kept"), [(0, 1), (1e-6, 1 - 1e-6), (1e-3, 0)])
def test_an_output_that_does_not_vary_is_held_by_its_size(moved, kept):
    centres = np.full((50, 4), 8.0)
    assert kept_variance(centres * (1 + moved), centres, [4]) == pytest.approx(kept, abs=1e-7)


def test_what_is_not_finite_keeps_nothing():
    got = WANT.copy()
    got[3, 3] = np.nan
    assert kept_variance(got, WANT, [6]) == 0 and kept_variance(np.full_like(WANT, np.inf), WANT, [6]) == 0


def test_it_is_told_in_words():
    assert share_right(0.9988, "R2") == "keeps 99.88% of the variance of the float network's outputs (R2)"
