"""What does not fit a network is said in words that name every tensor."""

import pytest
import torch

from repnets.checkpoints.state_dict_errors import misnamed, misshapen

WANTED = [f"stage{stage}.{block}.{leaf}" for stage in (1, 2) for block in (0, 1) for leaf in ("weight", "bias")]


def without(*gone: str) -> list[str]:
    return [name for name in WANTED if name not in gone]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (WANTED, None),
        (without("stage1.0.weight"), "`stage1.0.weight` is missing"),
        (without("stage2.1.bias", "stage1.0.weight"), "`stage1.0.weight`, `stage2.1.bias` are missing"),
        ([*WANTED, "aux.weight"], "`aux.weight` is too many"),
        ([*without("stage1.0.bias"), "b"], "`stage1.0.bias` is missing; `b` is too many"),
    ],
)
def test_each_missing_and_each_surplus_tensor_is_named(found, message):
    assert misnamed(found, WANTED) == message


def test_many_are_gathered_under_paths_that_stand_for_nothing_else():
    found = [*(f"encoder.{layer}.weight" for layer in range(9)), "stage1.0.weight"]
    wanted = [*WANTED, "stage3.weight", "head"]
    assert misnamed(found, wanted) == (
        "`stage1.0.bias`, `stage1.1.*`, `stage2.*`, `stage3.*`, `head` are missing; `encoder.*` are too many"
    )


def test_a_counter_may_be_missing_or_too_many():
    counter = "stage1.0.num_batches_tracked"
    assert misnamed(WANTED, [*WANTED, counter]) is None
    assert misnamed([*WANTED, counter], WANTED) is None


def test_a_counter_is_no_part_of_what_a_path_stands_for():
    wanted = [f"bn{layer}.{leaf}" for layer in range(9) for leaf in ("weight", "num_batches_tracked")]
    found = [name for name in wanted if name.endswith("tracked")]
    assert misnamed(found, wanted) == f"{', '.join(f'`bn{layer}.*`' for layer in range(9))} are missing"


def test_another_shape_is_named_with_both():
    found = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
    assert misshapen(found, {"a": (2, 3), "b": (4,), "c": (1,)}, "toy") is None
    assert misshapen(found, {"a": (3, 2), "b": (4,)}, "toy") == "`a` has the shape (2, 3), but in `toy` it is (3, 2)"
    assert misshapen(found, {"a": (3, 2), "b": (5,)}, "toy").endswith("it is (3, 2), and 1 more differ")
