"""What two computations differ by, and where they part."""

import numpy as np
import pytest

from pipeline.artifacts.check_result import Flip
from pipeline.artifacts.export_result import TensorFacts
from pipeline.errors import GateError
from pipeline.verification.compare import compare, first_departure, flips, mean_error


def logits(rows=6, classes=4, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, classes)).astype(np.float32)


def test_equal_logits_differ_by_nothing():
    found = compare(logits(), logits())
    assert (found.relative_error, found.agreement, found.images) == (0.0, 1.0, 6)


def test_the_worst_logit_is_named():
    got, want = logits(), logits()
    got[4, 2] += 0.5
    got[1, 1] += 0.1
    found = compare(got, want)
    assert (found.image, found.logit) == (4, 2)
    assert found.got == pytest.approx(float(want[4, 2]) + 0.5)
    assert found.relative_error == pytest.approx(0.5 / np.abs(want).max())


def test_agreement_counts_images():
    want = np.eye(4, dtype=np.float32)
    got = want.copy()
    got[3] = [9, 0, 0, 0]
    assert compare(got, want).agreement == 0.75


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_tolerance_admits_what_is_not_a_number(value):
    got, want = logits(), logits()
    got[2, 3] = value
    found = compare(got, want)
    assert not found.relative_error <= 1e30
    assert (found.image, found.logit) == (2, 3)


def test_infinity_in_both_is_not_agreement():
    got, want = logits(), logits()
    got[0, 0] = want[0, 0] = np.inf
    assert not compare(got, want).relative_error <= 1e30


def test_comparing_nothing_is_a_failure():
    with pytest.raises(GateError, match="nothing was compared"):
        compare(logits(0), logits(0))


def test_other_shapes_are_a_failure():
    with pytest.raises(GateError, match=r"of shape \(6, 3\), and must be of shape \(6, 4\)"):
        compare(logits(6, 3), logits(6, 4))


def layers(**changed):
    made = {name: logits(2, 8, seed) for seed, name in enumerate(("conv", "relu", "conv_1", "head"))}
    return made | changed


def test_layers_that_agree_have_no_departure():
    assert first_departure(layers(), layers(), 1e-6) is None


def test_the_first_departure_is_found_in_the_order_of_the_program():
    want = layers()
    off = want["relu"].copy()
    off[1, 3] += 1
    got = layers(relu=off, head=want["head"] + 5)
    found = first_departure(dict(reversed(got.items())), want, 1e-3)
    assert (found.layer, found.before, found.index, found.compared) == ("relu", "conv", (1, 3), 4)
    assert "the first layer that departs is relu: [1, 3] of its output is" in str(found)
    assert "conv before it still agrees" in str(found)


def test_layers_that_only_one_side_has_are_left_out():
    want = layers()
    got = {name: value for name, value in want.items() if name != "relu"} | {"else": logits()}
    got["head"] = got["head"] * 2
    found = first_departure(got, want, 1e-3)
    assert (found.layer, found.before, found.compared) == ("head", "conv_1", 3)


def test_a_layer_that_overflows_departs():
    want = layers()
    off = want["conv"].copy()
    off[0, 0] = np.inf
    assert first_departure(layers(conv=off), want, 1e9).layer == "conv"


def test_a_layer_of_zeros_can_be_compared():
    zeros = np.zeros((2, 2), dtype=np.float32)
    assert first_departure({"a": zeros}, {"a": zeros}, 0) is None
    assert first_departure({"a": zeros + 1e-3}, {"a": zeros}, 1e-3).layer == "a"


def test_flips_are_the_images_of_another_class_the_widest_margin_first():
    want = np.array([[4.0, 1.0, 0.0], [2.0, 1.5, 0.0], [0.0, 3.0, 3.0], [-4.0, 0.0, 0.0]], dtype=np.float32)
    got = np.array([[3.0, 1.0, 0.0], [1.4, 1.5, 0.0], [3.5, 3.0, 3.0], [-4.0, 0.0, 0.1]], dtype=np.float32)
    assert flips(got, want) == [Flip(2, 0, 1, 0.75), Flip(1, 1, 0, 0.125), Flip(3, 2, 1, 0.0)]
    assert flips(want, want) == []


def test_the_mean_error_is_that_of_each_images_worst_logit():
    want = np.array([[4.0, 0.0], [-8.0, 0.0]], dtype=np.float32)
    got = np.array([[4.0, 0.4], [-8.0, 0.0]], dtype=np.float32)
    assert mean_error(got, want) == pytest.approx(0.2 / 8)


def test_of_a_map_it_is_the_mean_of_the_largest_hundredth():
    random = np.random.default_rng(0)
    want = random.normal(size=(3, 4000))
    few, many = want.copy(), want.copy()
    few[:, 5:9] += 1
    many[:, 5:105] -= 1
    largest = np.abs(want).max()
    assert mean_error(few, want) == pytest.approx(0.1 / largest)
    assert mean_error(many, want) == pytest.approx(1 / largest)
    assert mean_error(few[:, :1000], want[:, :1000]) == pytest.approx(1 / np.abs(want[:, :1000]).max())
    few[0, 7] = np.nan
    assert np.isnan(mean_error(few, want))


def test_each_output_has_its_own_largest_value_and_its_own_hundredth():
    outputs = [TensorFacts("scores", (1, 5), "float32"), TensorFacts("mask", (1, 2, 1000), "float32")]
    want = np.concatenate([np.full((2, 5), 0.5), np.full((2, 2000), 8.0)], axis=1)
    got = want.copy()
    got[:, 2] += 0.1
    assert mean_error(got, want, outputs) == pytest.approx(0.2)
    found = compare(got, want, outputs)
    assert found.relative_error == pytest.approx(0.2) and found.where == "scores[2] of image 0"
    got[1, 5 + 1203] += 8
    assert compare(got, want, outputs).where == "mask[1, 203] of image 1"
