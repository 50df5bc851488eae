"""The fused network that weights folded elsewhere are loaded into."""

import pytest
import torch

import repnets
from repnets.checkpoints.layouts import block_names, convert
from repnets.deploy import fused_network


def test_it_is_the_network_that_fuse_makes(randomise):
    model = randomise(repnets.create_model("toy", num_classes=7))
    fused = repnets.fuse(model, torch.zeros(1, 3, 32, 32)).module
    made = fused_network("toy", num_classes=7)
    assert list(made.state_dict()) == list(fused.state_dict())
    folded_elsewhere = convert(fused.state_dict(), "toy")
    names = block_names(made.state_dict())
    made.load_state_dict({name: folded_elsewhere[block] for name, block in names.items()})
    images = torch.randn(3, 3, 48, 32)
    with torch.inference_mode():
        assert torch.equal(made(images), fused(images))
    assert not made.training


def test_there_is_nothing_left_to_fold():
    result = repnets.fuse(fused_network("toy"), torch.zeros(1, 3, 32, 32))
    assert (result.report.regions, result.report.after.convolutions) == ((), 3)


def test_an_unknown_network_is_answered_with_the_nearest():
    with pytest.raises(repnets.RepnetsError, match=r"no network 'toi'. Did you mean 'toy'"):
        fused_network("toi")
