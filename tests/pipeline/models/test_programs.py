"""Programs cut short, rounded, and searched for what a float16 file rounds besides weights."""

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.models import programs

SHAPE = (1, 3, 8, 8)


class Net(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.stem, self.head, self.act = nn.Conv2d(3, 4, 3), nn.Linear(4, 5), act

    def forward(self, x):
        return self.head(self.act(self.stem(x)).mean((2, 3)))


def module(act):
    torch.manual_seed(0)
    return programs.static(Net(act).eval(), SHAPE).module()


def image():
    return np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)


@pytest.mark.parametrize(
    ("act", "found"),
    [
        (torch.relu, []),
        (lambda x: x * 0.25, []),
        (lambda x: x * 0.3, ["mul"]),
        (lambda x: torch.relu(x + 3) / 6, ["div"]),
        (lambda x: x / 4, []),
        (nn.PReLU(4), ["prelu"]),
        (nn.GELU(), ["gelu"]),
        (nn.Hardswish(), ["hardswish"]),
    ],
    ids=["relu", "a half", "no half", "a sixth", "a fourth", "slopes", "gelu", "hardswish"],
)
def test_layers_with_numbers_that_half_precision_rounds(act, found):
    assert programs.rounded_constants(module(act)) == found


def test_weights_are_rounded_in_a_copy():
    own = module(torch.relu)
    before = own.stem.weight.clone()
    rounded = programs.with_rounded_weights(own, "fp16")
    assert torch.equal(rounded.stem.weight, before.half().float())
    assert torch.equal(own.stem.weight, before) and not torch.equal(before, rounded.stem.weight)


def test_all_numbers_of_a_program_are_rounded_in_a_copy():
    own = module(lambda x: torch.clamp(x * 0.3 + 1, -0.1, 7) / 6)
    x = torch.from_numpy(image())
    rounded = programs.with_rounded_numbers(own)
    third, tenth, sixth = (float(np.float16(one)) for one in (0.3, 0.1, 1 / 6))
    with torch.no_grad():
        want = module(lambda x: torch.clamp(x * third + 1, -tenth, 7) * sixth)(x)
        assert torch.equal(rounded(x), want) and not torch.equal(own(x), want)


def test_weights_of_layers_alone_are_rounded():
    own = module(nn.PReLU(4))
    with torch.no_grad():
        own.act.weight.fill_(0.3)
    rounded = programs.with_rounded_weights(own, "fp16", of_layers_alone=True)
    assert torch.equal(rounded.stem.weight, own.stem.weight.half().float())
    assert torch.equal(rounded.act.weight, own.act.weight)
    assert programs.weights_beside_layers(own) == {"act.weight"}


def test_a_program_cut_after_a_layer_gives_what_that_layer_gives():
    whole = module(torch.relu)
    outputs = programs.outputs_of(whole, image())
    layers = programs.layers(whole)
    assert [node.name for node in layers] == ["conv2d", "relu", "mean", "linear"]
    for node in layers:
        cut = programs.cut_after(whole, node)
        got = cut(torch.from_numpy(image())).detach().numpy()
        np.testing.assert_allclose(got, outputs[node.name], rtol=1e-5, atol=1e-6)
        programs.static(cut, SHAPE)
    assert "head.weight" not in programs.cut_after(whole, layers[1]).state_dict()


def test_a_layer_is_known_by_the_module_of_its_weights():
    whole = module(torch.relu)
    assert programs.title(whole, "conv2d") == "conv2d (stem)"
    assert programs.title(whole, "relu") == "relu"
    assert programs.title(whole, "not there") == "not there"
