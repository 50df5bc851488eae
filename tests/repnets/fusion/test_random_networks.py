"""Random networks: what fuse makes of them is equal at every size that it claims, or they are refused.

More of them: python -m tests.fixtures.random_networks --count 5000
"""

import pytest
import torch

from tests.fixtures.random_networks.check import check_seed, relative_difference
from tests.fixtures.random_networks.draw import Kind
from tests.fixtures.random_networks.generator import ALL, random_network
from tests.fixtures.random_networks.network import Network, Step
from tests.fixtures.random_networks.shrink import shrunk

SEEDS = [*range(15), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(15, 60))]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_network_is_fused_as_promised_or_refused(seed):
    assert check_seed(seed).failures == []


@pytest.mark.parametrize("border", ["refuse", "exact"])
@pytest.mark.parametrize("seed", SEEDS[5:25])
def test_a_random_linear_network_is_fused_as_promised(seed, border):
    outcome = check_seed(seed, linear=True, border=border)
    assert (outcome.failures, outcome.refused) == ([], None)


# The generator and the check themselves


def test_a_seed_makes_the_same_network_again():
    assert random_network(7).source == random_network(7).source != random_network(8).source


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_kind_of_step_is_drawn(kind: Kind):
    others = {one: 1 for one in ALL if one.__name__ in ("convolution", kind.__name__)}
    drawn = [step.kind for seed in range(5) for step in random_network(seed, others).steps]
    assert kind.__name__ in drawn


def test_what_fails_is_made_small():
    steps = [Step("number", (0,), "{o} = {a} * 2"), Step("activation", (1,), "{o} = {a}.relu()"),
             Step("addition", (2, 1), "{o} = {a} + {b}")]  # fmt: skip
    network = Network(0, (2, 3, 8, 8), tuple(steps), "({3}, {1})")
    small = shrunk(network, lambda one: any(step.kind == "activation" for step in one.steps))
    assert ([step.code for step in small.steps], small.outputs, small.shape) == (
        ["{o} = {a}.relu()"],
        "{1}",
        (1, 3, 8, 8),
    )


@pytest.mark.parametrize(
    ("got", "wanted"),
    [
        (torch.ones(2), torch.ones(3)),
        (torch.ones(2), torch.ones(2).double()),
        (torch.ones(2), (torch.ones(2),)),
        ({"a": torch.ones(2)}, {"b": torch.ones(2)}),
        (torch.tensor([1.0, torch.nan]), torch.ones(2)),
        (torch.ones(2), torch.tensor([1.0, torch.nan])),
        ((torch.ones(2), 3), (torch.ones(2), 4)),
        ((torch.ones(2), torch.ones(2)), (torch.ones(2), torch.full((2,), 2.0))),
    ],
)
def test_outputs_that_differ_are_told_apart(got, wanted):
    assert relative_difference(got, wanted) >= 0.5
    assert relative_difference(wanted, wanted) == 0
