import pytest
import torch
from torch import nn

import repnets
from repnets.drawing.outline import blocks, change_text, origins, read
from repnets.fusion.graph import node_shapes
from repnets.fusion.simplification import flatten_batch_norms
from repnets.fusion.sizes import graph_module


class Residual(nn.Module):
    def __init__(self, channels, conv):
        super().__init__()
        self.inner = nn.Sequential(conv, nn.BatchNorm2d(channels))

    def forward(self, x):
        return x + self.inner(x)


class Stage(nn.Module):
    """Does nothing but call others, and is no Sequential."""

    def __init__(self, channels):
        super().__init__()
        self.first = Residual(channels, nn.Conv2d(channels, channels, 3, padding=1))
        self.second = Residual(channels, nn.Conv2d(channels, channels, 1))

    def forward(self, x):
        return self.second(self.first(x))


class Gated(nn.Module):
    """With branches of which one is not a module's, a dropout, and a view."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.drop = nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.rand(4, 1, 1))
        self.linear = nn.Linear(4, 2)

    def forward(self, x):
        gated = self.conv(x) * x.mean((2, 3), keepdim=True).sigmoid()
        return self.linear(self.drop(gated * self.scale).amax((2, 3)).flatten(1))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Residual(4, nn.Conv2d(4, 4, 1))

    def forward(self, x):
        return self.block(self.block(x).relu())


def steps_of(model, shape=(1, 4, 16, 16)):
    captured = graph_module(repnets.capture(model.eval(), torch.rand(shape)))
    flatten_batch_norms(captured.graph)
    return read(captured, node_shapes(captured.graph, shape))


def described(steps):
    return [(step.kind, step.label, step.detail) for step in steps]


def test_steps_say_what_they_do_and_what_they_read():
    steps = steps_of(Gated())
    assert described(steps) == [
        ("input", "input", ""),
        ("convolution", "conv 3×3", "4 → 4, 2 groups"),
        ("other", "mean", ""),
        ("activation", "sigmoid", ""),
        ("sum", "×", ""),
        ("other", "× constant", ""),
        ("other", "amax", ""),
        ("linear", "linear", "4 → 2"),
        ("output", "output", ""),
    ]
    x, conv, mean, sigmoid, product, *_ = steps
    assert (conv.inputs, mean.inputs, sigmoid.inputs) == ((x.name,), (x.name,), (mean.name,))
    assert product.inputs == (conv.name, sigmoid.name)
    assert (conv.parameters, conv.shape, conv.stack) == (4 * 2 * 9 + 4, (1, 4, 16, 16), (("conv", "Conv2d"),))


def test_a_stride_and_a_depthwise_convolution_are_told():
    model = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, bias=False), nn.Conv2d(8, 8, (1, 3), groups=8), nn.ReLU6())
    assert described(steps_of(model))[1:-1] == [
        ("convolution", "conv 3×3", "4 → 8, /2"),
        ("convolution", "conv 1×3", "8 → 8, depthwise"),
        ("activation", "ReLU6", ""),
    ]


def test_modules_that_only_call_others_are_opened():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), Stage(4), nn.Sequential(Residual(4, nn.Conv2d(4, 4, 1))))
    found = [(block.name, block.type_name, len(block.steps)) for block in blocks(steps_of(model))]
    assert found == [
        ("0", "Conv2d", 1),
        ("1", "ReLU", 1),
        ("2.first", "Residual", 3),
        ("2.second", "Residual", 3),
        ("3.0", "Residual", 3),
    ]


def test_blocks_of_one_class_stay_whole_where_one_of_them_has_a_single_branch():
    found = blocks(steps_of(repnets.create_model("mobileone_s1", num_classes=10), (1, 3, 64, 64)))
    assert {block.type_name for block in found} == {"MobileOneBlock", "Classifier"}
    assert len(found) == 1 + 2 * (2 + 8 + 10 + 1) + 1
    assert min(len(block.steps) for block in found[:-1]) == 3  # a convolution, its batch norm, ReLU


def test_a_block_called_twice_is_two_blocks():
    found = blocks(steps_of(Twice()))
    assert [(one.name, len(one.steps)) for one in found] == [("block", 3), ("relu", 1), ("block@1", 3)]


def test_what_the_network_itself_does_is_a_block_each():
    found = blocks(steps_of(Gated()))
    assert [one.type_name for one in found] == ["Conv2d", "", "", "", "", "", "Linear"]
    assert all(one.name == one.steps[0].name for one in found if not one.type_name)


@pytest.mark.parametrize("calls", [1, 2])
def test_every_step_of_a_fused_network_stands_for_original_ones(calls, randomise):
    block = Residual(4, nn.Conv2d(4, 4, 1))
    model = randomise(nn.Sequential(*[nn.ReLU(), block] * calls, nn.Flatten(), nn.Linear(4 * 64, 2)))
    result = repnets.fuse(model, torch.rand(1, 4, 8, 8))
    original, fused = steps_of(model, (1, 4, 8, 8)), read(result.module)
    found = origins(fused, original, result.report.regions)
    assert set(found) == {step.name for step in fused}
    stood_for = [name for names in found.values() for name in names]
    assert sorted(stood_for) == sorted(step.name for step in original)  # each once, none left out
    folded = [found[step.name] for step in fused if step.module]
    assert [len(names) for names in folded] == [3] * calls


def test_layers_that_are_more_than_one_say_so(randomise):
    wide = nn.Sequential(nn.Conv2d(4, 16, 1), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 3, padding=1))
    pooled = nn.Sequential(nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    model = randomise(nn.Sequential(wide, nn.ReLU(), pooled))
    steps = read(repnets.fuse(model, torch.rand(1, 4, 16, 16), border="exact").module)
    assert described(steps)[1:-1] == [
        ("convolution", "conv 3×3 + border", "4 → 4"),
        ("activation", "ReLU", ""),
        ("linear", "mean, linear", "4 → 2"),
    ]


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ((1, 48, 56, 56), (1, 96, 28, 28), "48 → 96, /2"),
        ((1, 48, 7, 7), (1, 48, 4, 4), "48 → 48, /2"),
        ((1, 48, 56, 56), (1, 48, 56, 56), "48 → 48"),
        ((1, 1280, 7, 7), (1, 1000), "1280 → 1000"),
        ((1, 196, 128), (1, 196, 128), ""),
    ],
)
def test_what_becomes_of_a_feature_map(before, after, text):
    assert change_text(before, after) == text
