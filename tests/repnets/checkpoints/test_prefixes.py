"""Prefixes before all keys of a state dict: taken off where they are no part of the network's own names."""

import pytest

from repnets.checkpoints.prefixes import without_prefix

NETWORKS = {
    "plain": ["conv.weight", "norm.bias", "head"],
    "all its keys begin alike": ["model.conv.weight", "model.norm.bias"],
    "as a wrapper is called": ["module.0.weight", "module.1.weight"],
    "nested alike": ["net.net.weight", "net.net.bias"],
    "one key": ["model.fc.weight"],
    "numbers": ["0.weight", "0.bias"],
}


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "net.", "module._orig_mod.", "a.b.c.", "net.net.net."])
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_left_is_the_networks(name, prefix):
    wanted = NETWORKS[name]
    state = {f"{prefix}{key}": number for number, key in enumerate(wanted)}
    assert without_prefix(state, wanted) == dict(zip(wanted, range(len(wanted)), strict=True))


@pytest.mark.parametrize("keys", [["other.weight", "other.bias"], ["model.conv.weight", "head"], [], ["modulehead"]])
def test_what_fits_no_network_stays_as_it_is(keys):
    state = dict.fromkeys(keys, 0)
    assert without_prefix(state, NETWORKS["plain"]) == state


def test_a_part_of_a_word_is_no_prefix():
    state = dict.fromkeys(["xconv.weight", "xnorm.bias", "xhead"], 0)
    assert without_prefix(state, NETWORKS["plain"]) == state
