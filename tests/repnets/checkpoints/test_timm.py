"""Weights with official keys give, after import, what timm's own implementation gives with the same weights.

The names of the authors' files are written here from timm's, apart from the tables under test. Statistics are random,
with the identity branches in the lead: with equal ones a network this deep is chaotic, and float32 rounding of any
kind, its own too, would hide an error.
"""

import copy
import re

import pytest
import timm
import torch
from timm.utils import reparameterize_model
from torch import Tensor, nn

import repnets
from repnets.checkpoints.layouts import block_names, convert
from tests.fixtures.kinds import in_ci

NETWORKS = ["repvgg_a0", "repvgg_b1g4", "repvgg_d2se", "mobileone_s0", "mobileone_s1", "mobileone_s4"]
QUICK = ("repvgg_a0", "mobileone_s1")
ALL = [pytest.param(name, marks=() if name in QUICK else in_ci(name)) for name in NETWORKS]
OFFICIAL = {
    "repvgg": (
        ("conv_kxk", "rbr_dense"), ("conv_1x1", "rbr_1x1"), ("identity", "rbr_identity"),
        ("reparam_conv", "rbr_reparam"), ("attn.fc1", "se.down"), ("attn.fc2", "se.up"),
    ),
    "mobileone": (
        ("conv_kxk", "rbr_conv"), ("conv_scale", "rbr_scale"), ("identity", "rbr_skip"),
        ("attn.fc1", "se.reduce"), ("attn.fc2", "se.expand"),
    ),
}  # fmt: skip
ROUNDING = 8 * torch.finfo(torch.float32).eps


def official(state: dict[str, Tensor], arch: str) -> dict[str, Tensor]:
    """timm's state dict with the keys of the authors' files."""
    renamed = {}
    for key, tensor in state.items():
        key = re.sub(r"^stages\.(\d)\.", lambda match: f"stage{int(match[1]) + 1}.", key)
        key = key.replace("stem.", "stage0.").replace("head.fc.", "linear.")
        for theirs, authors in OFFICIAL[arch.partition("_")[0]]:
            key = key.replace(theirs, authors)
        renamed[key] = tensor
    assert len(renamed) == len(state)
    return renamed


def timm_network(arch: str) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(arch, num_classes=10)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(*((0.8, 1.1) if name.endswith("identity") else (0.1, 0.4)))
                module.bias.uniform_(-0.3, 0.3)
                module.running_mean.uniform_(-0.3, 0.3)
                module.running_var.uniform_(0.5, 1.5)
            elif isinstance(module, nn.Linear):
                module.weight.normal_(std=0.05)
                module.bias.normal_(std=0.05)
            elif isinstance(module, nn.Conv2d) and module.bias is not None:  # of a gate
                module.bias.normal_(std=0.5)
    return model.eval()


@pytest.fixture(scope="module", params=ALL)
def network(request) -> tuple[str, nn.Module]:
    """timm's implementation, in training form."""
    return request.param, timm_network(request.param)


@pytest.fixture(scope="module")
def ours(network) -> nn.Module:
    """Our network with the same weights, read from official keys."""
    arch, theirs = network
    model = repnets.create_model(arch, num_classes=10)
    model.load_state_dict(convert(official(theirs.state_dict(), arch), arch))
    return model.eval()


@pytest.fixture(scope="module")
def fused(ours) -> nn.Module:
    return repnets.fuse(ours, torch.zeros(1, 3, 64, 64)).module


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def exact(network, images) -> Tensor:
    """What timm's network gives in float64."""
    _, theirs = network
    with torch.inference_mode():
        return copy.deepcopy(theirs).double()(images.double())


def test_the_branched_network_gives_what_timm_gives(network, ours, images, exact, relative_error):
    _, theirs = network
    with torch.inference_mode():
        assert relative_error(copy.deepcopy(ours).double()(images.double()), exact) < 1e-12
        of_timm = relative_error(theirs(images).double(), exact)
        assert of_timm < 1e-4  # the statistics are not chaotic
        assert relative_error(ours(images).double(), exact) <= 4 * max(of_timm, ROUNDING)


@pytest.mark.slow
def test_the_fused_network_gives_what_timms_gives(network, fused, images, exact, relative_error):
    _, theirs = network
    with torch.inference_mode():
        of_timm = relative_error(reparameterize_model(theirs)(images).double(), exact)
        assert relative_error(fused(images).double(), exact) <= 4 * max(of_timm, ROUNDING)


@pytest.mark.slow
def test_fused_weights_are_those_that_timm_folds(network, fused, relative_error):
    """Official deploy keys, tensor by tensor: no depth to amplify a difference."""
    arch, theirs = network
    want = official(reparameterize_model(theirs).state_dict(), arch)
    got = convert(convert(fused.state_dict(), arch), arch, "official")
    assert got.keys() == want.keys()
    assert max(relative_error(got[name], want[name]) for name in want) < 1e-5


@pytest.mark.slow
def test_deploy_weights_of_timm_run_in_our_fused_network(network, fused, images, exact, relative_error):
    arch, theirs = network
    folded = reparameterize_model(theirs)
    state = convert(official(folded.state_dict(), arch), arch)
    model = copy.deepcopy(fused)
    model.load_state_dict({name: state[block] for name, block in block_names(model.state_dict()).items()})
    with torch.inference_mode():
        of_timm = relative_error(folded(images).double(), exact)
        assert relative_error(model(images).double(), exact) <= 4 * max(of_timm, ROUNDING)


@pytest.mark.slow
def test_timm_takes_what_is_written_for_it(network, ours, fused):
    """Strictly: `load_state_dict` of timm's own modules names every key that does not fit."""
    arch, theirs = network
    written = convert(ours.state_dict(), arch, "timm")
    want = theirs.state_dict()
    assert list(written) and all(torch.equal(written[name], tensor) for name, tensor in want.items())
    theirs.load_state_dict(written, strict=True)
    folded = reparameterize_model(theirs)
    folded.load_state_dict(convert(fused.state_dict(), arch, "timm"), strict=True)


@pytest.mark.slow
def test_the_way_through_official_and_timms_keys_is_exact_to_the_bit(network, ours, fused):
    arch, _ = network
    for model in (ours, fused):
        start = convert(model.state_dict(), arch)
        back = convert(convert(convert(start, arch, "official"), arch, "timm"), arch)
        assert list(back) == list(start)
        assert all(torch.equal(back[name], start[name]) for name in start)
