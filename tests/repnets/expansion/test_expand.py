"""Expanded networks compute what they did, and `fuse` gives the plain network's layers back."""

import copy
import re

import pytest
import torch
from torch import nn

import repnets
from repnets.expansion import STYLES
from repnets.expansion.expand import what_expands

LEFT = "is left, as `leave` says"

# layers and the shape of an image, for every kind of geometry
GEOMETRIES = {
    "padded 3x3": (nn.Conv2d(4, 6, 3, padding=1), (9, 8)),
    "stride 2": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (9, 8)),
    "no padding": (nn.Conv2d(4, 4, 3), (9, 8)),
    "more padding than the kernel reaches": (nn.Conv2d(4, 4, 3, padding=2, bias=False), (7, 8)),
    "padding same": (nn.Conv2d(4, 4, 5, padding="same"), (9, 8)),
    "dilation": (nn.Conv2d(4, 4, 3, padding=2, dilation=2), (9, 8)),
    "depthwise": (nn.Conv2d(4, 4, 3, padding=1, groups=4), (9, 8)),
    "grouped, of two sides": (nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(0, 2), groups=2), (9, 8)),
    "signals": (nn.Conv1d(4, 4, 5, padding=2), (12,)),
    "volumes": (nn.Conv3d(4, 4, 3, padding=1), (5, 6, 5)),
}


def _network(conv: nn.Module) -> nn.Module:
    rank = len(conv.kernel_size)
    batch_norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 1]
    last = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1](conv.out_channels, 3, 1)
    return nn.Sequential(copy.deepcopy(conv), batch_norm(conv.out_channels), nn.ReLU(), last)


@pytest.fixture
def trained(randomise):
    """Randomises batch norms, and moves the gains and factors that start at zero as training would."""

    def move(model: nn.Module) -> nn.Module:
        randomise(model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("factors"):
                    parameter.uniform_(0.2, 0.8)
        return model

    return move


CASES = [
    (style, name)
    for style in STYLES
    for name, (conv, _) in GEOMETRIES.items()
    if not (style == "acb" and isinstance(conv, nn.Conv1d))
]


@pytest.mark.parametrize(("style", "geometry"), CASES)
def test_the_function_is_kept_and_the_layers_come_back(style, geometry, randomise, trained, relative_error):
    conv, size = GEOMETRIES[geometry]
    plain = randomise(_network(conv)).double()
    expanded = repnets.expand(plain, style)
    x = torch.randn(3, 4, *size, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(expanded(x), plain(x)) < 1e-12
        in_training = copy.deepcopy(plain).train()(x)
        assert relative_error(copy.deepcopy(expanded).train()(x), in_training) < 1e-12

        trained(expanded)
        assert relative_error(expanded(x), plain(x)) > 1e-3  # the branches count
        fused, layers = repnets.fuse(expanded, x), repnets.fuse(plain, x).report
        assert relative_error(fused.module(x), expanded(x)) < 1e-9
    assert fused.report.after == layers.after  # operations, convolutions, parameters and MACs of the plain network


@pytest.mark.parametrize("style", STYLES)
def test_as_papers_start_it_trains_and_folds(style, trained, relative_error):
    torch.manual_seed(0)
    plain = _network(GEOMETRIES["padded 3x3"][0])
    expanded = repnets.expand(plain.train(), style, keep_function=False)
    x = torch.randn(4, 4, 9, 8)
    optimizer = torch.optim.SGD(expanded.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        expanded(x).square().mean().backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in expanded.parameters())
    trained(expanded).double()
    with torch.no_grad():
        fused = repnets.fuse(expanded, x.double())
        assert relative_error(fused.module(x.double()), expanded(x.double())) < 1e-9
    assert fused.report.after.convolutions == 2
    assert fused.report.after.batch_norms == 0


@pytest.mark.slow
def test_a_resnet_of_any_style_has_the_layers_of_a_resnet(trained, relative_error):
    plain = repnets.create_model("resnet18", num_classes=4)
    x = torch.randn(1, 3, 32, 32)
    expanded = trained(repnets.expand(plain, "dbb"))
    left = [name for name, reason in what_expands(plain, "dbb").items() if reason]
    assert all("shortcut" in name or "downsample" in name for name in left) and len(left) == 3
    fused = repnets.fuse(expanded, x)
    with torch.no_grad():
        assert relative_error(fused.module(x), expanded(x)) < 1e-4
    assert fused.report.before.convolutions > 60
    assert fused.report.after.convolutions == 20


def test_parameters_keep_their_names_and_the_model_its_state():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2))
    before = copy.deepcopy(plain.state_dict())
    plain.eval().half()
    expanded = repnets.expand(plain, "repvgg")
    assert list(plain.state_dict()) == list(before)
    assert {"0.main.weight", "0.main.bias", "1.weight"} <= set(expanded.state_dict())
    assert {one.dtype for one in expanded.parameters()} == {torch.float16}
    assert not any(module.training for module in expanded.modules())


def test_one_convolution_at_two_places_stays_one():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    expanded = repnets.expand(nn.Sequential(conv, nn.ReLU(), conv), "acb")
    assert expanded[0] is expanded[2]
    alone = repnets.expand(conv, "acb")
    assert type(alone) is type(expanded[0])


class _OwnConv(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


def test_what_is_left_says_why():
    model = nn.ModuleDict(
        {
            "taken": nn.Conv2d(3, 3, 3),
            "even": nn.Conv2d(3, 3, 2),
            "point": nn.Conv2d(3, 3, 1),
            "reflected": nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"),
            "own": _OwnConv(3, 3, 3),
        }
    )
    assert what_expands(model, "repvgg") == {
        "taken": "",
        "even": "has a kernel of 2x2, without a middle",
        "point": "has a kernel of one position",
        "reflected": "is padded by the mode 'reflect'",
        "own": "is a _OwnConv, a kind of convolution of its own",
    }
    assert what_expands(model, "mobileone")["point"] == ""


@pytest.mark.parametrize(
    ("model", "style", "message"),
    [
        (nn.Conv2d(3, 3, 3), "repvg", "There is no style 'repvg'. Did you mean 'repvgg'? Known: repvgg, mobileone"),
        (nn.Linear(3, 3), "dbb", "nothing to expand in the style of 'dbb': the network has no convolution"),
        (nn.Conv2d(3, 3, 2), "dbb", "it has a kernel of 2x2, without a middle"),
        ({"weight": torch.zeros(1)}, "dbb", "`expand` takes an nn.Module, and got a dict"),
    ],
)
def test_bad_input_is_one_sentence(model, style, message):
    with pytest.raises(repnets.RepnetsError, match=re.escape(message)):
        repnets.expand(model, style)


class Reading(nn.Module):
    """Convolves with the weight of a layer that it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.called = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.called(nn.functional.conv2d(x, self.read.weight, self.read.bias, padding=1))


@pytest.mark.parametrize("style", ["dbb", "orepa"])
def test_a_convolution_whose_weight_is_read_can_be_left(style):
    model, x = Reading(), torch.randn(1, 3, 8, 8)
    with pytest.raises(AttributeError, match=r"reads the `weight` of a convolution itself.*leave=\[its name\]"):
        repnets.expand(model, style)(x)
    expanded = repnets.expand(model, style, leave=["read"])
    assert type(expanded.read) is nn.Conv2d and type(expanded.called) is not nn.Conv2d
    torch.testing.assert_close(expanded(x), model(x))


def test_modules_are_left_by_the_names_of_what_holds_them():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), nn.Conv2d(4, 4, 3))
    assert what_expands(model, "repvgg", ["0"]) == {"0.0": LEFT, "0.1": LEFT, "1": ""}
    assert what_expands(model, "repvgg", ["0.1"]) == {"0.0": "", "0.1": LEFT, "1": ""}
    with pytest.raises(repnets.RepnetsError, match=r"`leave` names '0\.2', and no module is called so\. Did you mean"):
        repnets.expand(model, "repvgg", leave=["0.2"])
