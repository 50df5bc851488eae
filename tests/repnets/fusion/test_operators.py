"""What else than branches folds, and what must not: small networks of one idea each."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from repnets import fuse
from repnets.fusion.cost_model import Work
from tests.fixtures.layers import Layers


def conv(in_channels=4, out_channels=4, kernel=3, padding=1, bias=False, **options) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, padding=padding, bias=bias, **options)


def norm(channels=4) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels)


@pytest.fixture
def fold(randomise, relative_error):
    """Fuses a float64 network and holds the result against it: (kinds of the layers made, reasons of the rest)."""

    def check(net: nn.Module, sizes=((2, 24, 24), (1, 21, 26)), **options) -> tuple[list[str], list[str]]:
        net = randomise(net.double())
        result = fuse(net, torch.zeros(1, 4, 24, 24, dtype=torch.float64), **options)
        for batch, *size in sizes:
            x = torch.randn(batch, 4, *size, dtype=torch.float64)
            with torch.no_grad():
                assert relative_error(result.module(x), net(x)) < 1e-12
        assert fuse(result.module, torch.zeros(1, 4, 24, 24, dtype=torch.float64), **options).report.regions == ()
        kinds = [region.kind for region in result.report.regions]
        return kinds, [refusal.reason for refusal in result.report.refusals]

    return check


TWICE = "its input was padded once already: at the border the inner kernel would see the image, not zeros"
BORDER = (
    "its padding is not what the layers before it give where their input is zero, so at the border one "
    'kernel would be wrong (border="exact" allows a second one that mends it)'
)


# Sequences


def test_a_pointwise_convolution_before_a_padded_one_folds_where_nothing_lies_between(fold):
    assert fold(Layers(lambda m, x: m.b(m.a(x)), a=conv(4, 16, 1, 0), b=conv(16, 4))) == (["Conv2d"], [])


def test_a_batch_norm_before_a_padded_convolution_is_refused(fold):
    net = Layers(lambda m, x: m.b(m.n(m.a(x))), a=conv(4, 16, 1, 0), n=norm(16), b=conv(16, 4))
    assert fold(net) == (["Conv2d"], [BORDER])
    assert fold(net, border="exact") == (["BorderConv"], [])


def test_a_batch_norm_first_of_all_is_refused_with_the_reason_of_the_convolution_after_it(fold):
    net = Layers(lambda m, x: m.b(m.n(x)), n=norm(), b=conv())
    assert fold(net) == (
        [],
        [f"there is no convolution before it to fold it into; of the one after it: {BORDER}", BORDER],
    )
    unpadded = Layers(lambda m, x: m.b(m.n(x)), n=norm(), b=conv(padding=0))
    assert fold(unpadded) == (["Conv2d"], [])


def test_padded_after_padded_is_refused(fold):
    # to fewer channels one kernel of 5x5 would cost less
    net = Layers(lambda m, x: m.b(m.a(x)), a=conv(4, 32), b=conv(32, 4))
    assert fold(net) == ([], [TWICE])
    assert fold(net, border="exact") == ([], [TWICE])


def test_unpadded_after_anything_folds_where_it_costs_less(fold):
    assert fold(Layers(lambda m, x: m.b(m.a(x)), a=conv(4, 32, stride=2), b=conv(32, 4, padding=0))) == (["Conv2d"], [])
    assert fold(Layers(lambda m, x: m.b(m.a(x)), a=conv(), b=conv(padding=0))) == ([], [])


def test_a_padding_with_what_the_batch_norm_gives_for_zero_folds(fold):
    def with_value(m, x):
        y = m.n(m.a(x))
        value = (m.n.bias - m.n.running_mean * m.n.weight / (m.n.running_var + m.n.eps).sqrt()).view(1, -1, 1, 1)
        return m.b(F.pad(y - value, [1, 1, 1, 1]) + value)

    assert fold(Layers(with_value, a=conv(4, 8, 1, 0), n=norm(8), b=conv(8, 4, padding=0))) == (["Conv2d"], [])


def test_a_padding_written_in_place_folds_when_its_sides_agree(fold):
    def framed(value_of_last):
        def forward(m, x):
            y = F.pad(m.n(m.a(x)), [1, 1, 1, 1])
            value = (m.n.bias - m.n.running_mean * m.n.weight / (m.n.running_var + m.n.eps).sqrt()).view(1, -1, 1, 1)
            y[:, :, :1, :] = value
            y[:, :, -1:, :] = value
            y[:, :, :, :1] = value
            y[:, :, :, -1:] = value_of_last(value)
            return m.b(y)

        return Layers(forward, a=conv(4, 8, 1, 0), n=norm(8), b=conv(8, 4, padding=0))

    assert fold(framed(lambda value: value)) == (["Conv2d"], [])
    kinds, reasons = fold(framed(lambda value: 2 * value))
    assert kinds == ["Conv2d"]
    assert "the sides of its padding differ" in reasons


# Pools


@pytest.mark.parametrize("divisor", [None, 5])
def test_an_average_pool_folds(fold, divisor):
    net = Layers(lambda m, x: m.p(m.a(x)) + m.b(x), a=conv(4, 4, 1, 0), b=conv(stride=2),
              p=nn.AvgPool2d(3, 2, 1, divisor_override=divisor))  # fmt: skip
    assert fold(net) == (["Conv2d"], [])


@pytest.mark.parametrize(
    ("pool", "reason"),
    [
        (nn.AvgPool2d(3, 2, 1, count_include_pad=False), "count_include_pad=False averages over fewer positions"),
        (nn.AvgPool2d(3, 2, ceil_mode=True), "ceil_mode averages its last window over fewer positions"),
    ],
)
def test_a_pool_whose_windows_differ_is_refused(fold, pool, reason):
    kinds, (found,) = fold(Layers(lambda m, x: m.p(m.n(m.a(x))), a=conv(), n=norm(), p=pool))
    assert kinds == ["Conv2d"]
    assert found.startswith(reason)


def test_a_reflecting_padding_is_refused(fold):
    reflecting = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
    kinds, reasons = fold(Layers(lambda m, x: m.b(m.n(m.a(x))), a=conv(kernel=1, padding=0), n=norm(), b=reflecting))
    assert kinds == ["Conv2d"]
    assert reasons == ["reflect padding copies the image, which no convolution with zeros does"]


def test_channelwise_layers_move_past_a_global_pool_into_the_linear_layer(fold):
    net = Layers(
        lambda m, x: m.out(m.n(x.relu()).mean((2, 3), keepdim=True).flatten(1) * 2 + 1), n=norm(), out=nn.Linear(4, 3)
    )
    assert fold(net) == (["PooledLinear"], [])
    net = Layers(lambda m, x: m.out(m.n(x.mean((2, 3)))), n=nn.BatchNorm1d(4), out=nn.Linear(4, 3))
    assert fold(net) == (["Linear"], [])
    net = Layers(lambda m, x: m.b(m.a(x.flatten(2).mean(2))), a=nn.Linear(4, 32), b=nn.Linear(32, 3))
    assert fold(net) == (["Linear"], [])


# Tokens


def test_a_linear_layer_of_tokens_takes_its_batch_norm_and_its_scale(fold):
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.n, self.b = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)
            self.gamma = nn.Parameter(torch.rand(4) + 0.5)

        def forward(self, x):
            tokens = x.flatten(2).transpose(1, 2)  # (N, positions, 4)
            y = self.a(tokens)
            y = self.n(y.flatten(0, 1)).reshape_as(y)
            return tokens + self.gamma * self.b(y.relu()) / 2

    assert fold(Tokens())[0] == ["Linear", "Linear"]


def test_two_linear_layers_of_tokens_fold_where_it_costs_less(fold):
    net = Layers(lambda m, x: m.b(m.a(x.permute(0, 2, 3, 1))), a=nn.Linear(4, 64), b=nn.Linear(64, 4))
    assert fold(net)[0] == ["Linear"]
    wide = Layers(lambda m, x: m.b(m.a(x.permute(0, 2, 3, 1))), a=nn.Linear(4, 2), b=nn.Linear(2, 64))
    assert fold(wide)[0] == []


# Constants


def test_constants_that_the_graph_computes_fold(fold):
    def standardised(m, x):
        weight = m.a.weight - m.a.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.var((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        return m.n(F.conv2d(x, weight + torch.eye(4)[:, :, None, None].double(), padding=1)) * m.a.weight[0, 0, 0, 0]

    assert fold(Layers(standardised, a=conv(), n=norm())) == (["Conv2d"], [])


def instance_norm(channels):
    """One that uses its running statistics is a batch norm in eval mode."""
    return nn.InstanceNorm2d(channels, affine=True, track_running_stats=True)


@pytest.mark.parametrize("kind", [nn.SyncBatchNorm, FrozenBatchNorm2d, instance_norm])
def test_other_batch_norms_fold(fold, kind):
    batch_norm = kind(4)
    for tensor in batch_norm.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    assert fold(Layers(lambda m, x: m.n(m.a(x)), a=conv(), n=batch_norm)) == (["Conv2d"], [])


def test_layer_scale_differences_and_divisions_fold(fold):
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.n = conv(), conv(groups=4), norm()
            self.gamma = nn.Parameter(torch.rand(4, 1, 1) + 0.5)

        def forward(self, x):
            return 1 - (x - self.gamma * (self.n(self.a(x)) - self.b(x)) / 3)

    assert fold(Scaled()) == (["Conv2d"], [])


def test_what_is_not_the_same_at_every_position_is_refused(randomise):
    net = Layers(lambda m, x: m.a(x) * torch.linspace(0, 1, 24) + torch.ones(1, 1, 24, 24), a=conv())
    result = fuse(randomise(net), torch.zeros(1, 4, 24, 24))
    assert result.report.regions == ()
    assert "it multiplies by a constant that is not the same at every position" in [
        refusal.reason for refusal in result.report.refusals
    ]


# Channels and positions


def test_splits_and_concatenations_fold(fold):
    def forward(m, x):
        first, second = m.n(m.a(x)).chunk(2, 1)
        return torch.cat([second * 2, first, m.b(x)], 1)

    assert fold(Layers(forward, a=conv(4, 8), n=norm(8), b=conv())) == (["Conv2d"], [])


def test_a_cropped_convolution_folds(fold):
    net = Layers(lambda m, x: m.n(m.a(x))[:, :, 1:-1, 1:-1] + m.b(x), a=conv(padding=2), n=norm(), b=conv())
    assert fold(net) == (["Conv2d"], [])


def test_a_region_that_crops_is_checked_at_sizes_that_leave_something(fold):
    net = Layers(
        lambda m, x: m.b(m.n(m.a(x))[:, :, 4:-4, 4:-4]), a=conv(kernel=1, padding=0), n=norm(), b=conv(padding=0)
    )
    assert fold(net, cost=lambda work: 1.0) == (["Conv2d"], [])


def test_a_strided_slice_is_a_stride(fold):
    net = Layers(lambda m, x: m.n(m.a(x))[:, :, ::2, ::2], a=conv(), n=norm())
    assert fold(net) == (["Conv2d"], [])


# The caller's choice


def test_the_cost_decides_and_can_be_replaced(randomise):
    net = randomise(Layers(lambda m, x: m.b(m.a(x)), a=conv(4, 4, padding=0), b=conv(4, 4, padding=0)))
    example = torch.zeros(1, 4, 24, 24)
    assert fuse(net, example).report.regions == ()

    def calls_alone(work: Work) -> float:
        assert work.macs >= 0 < work.bytes
        return 1.0

    (region,) = fuse(net, example, cost=calls_alone).report.regions
    assert (region.kernel_size, region.macs_before < region.macs_after) == ((5, 5), True)


def test_a_border_that_nothing_asks_for_costs_nothing(randomise):
    net = randomise(Layers(lambda m, x: m.n(m.a(x)), a=conv(), n=norm()))
    (region,) = fuse(net, torch.zeros(1, 4, 24, 24), border="exact").report.regions
    assert region.kind == "Conv2d"


@pytest.mark.parametrize("total", [lambda y: y.sum(0), lambda y: y.mean(0), lambda y: 2 * y.sum(dim=[-5])])
def test_branches_that_are_stacked_to_be_added_up_are_branches(fold, total):
    net = Layers(
        lambda m, x: m.n(total(torch.stack([m.a(x), m.b(x), x]))), a=conv(), b=conv(kernel=1, padding=0), n=norm()
    )
    assert fold(net) == (["Conv2d"], [])


@pytest.mark.parametrize("total", [lambda y: y.sum(1), lambda y: y.sum((0, 1)), lambda y: y.sum(0, keepdim=True)])
def test_other_sums_over_a_stack_stay(fold, total):
    net = Layers(lambda m, x: total(torch.stack([m.a(x), m.b(x)])), a=conv(), b=conv(kernel=1, padding=0))
    assert fold(net)[0] == []


def test_a_layer_that_is_called_twice_on_one_map_is_computed_once(fold, randomise):
    net = Layers(lambda m, x: torch.cat([m.n(m.a(x)).relu(), m.n(m.a(x)).sigmoid()], 1), a=conv(), n=norm())
    assert fold(net)[0] == ["Conv2d"]
    report = fuse(randomise(net), torch.zeros(1, 4, 24, 24, dtype=torch.float64)).report
    assert (report.before.convolutions, report.after.convolutions) == (2, 1)


def test_branches_with_the_same_copying_padding_fold(fold):
    layers = {name: conv(padding_mode="reflect") for name in "ab"}
    assert fold(Layers(lambda m, x: m.n(m.a(x) + m.b(x)), **layers, n=norm()))[0] == ["Conv2d"]


def test_random_numbers_are_drawn_as_often_as_before(randomise):
    net = randomise(Layers(lambda m, x: m.a(x) + torch.rand_like(x) - torch.rand_like(x), a=conv()))
    x = torch.randn(1, 4, 24, 24)
    result = fuse(net, x)
    torch.manual_seed(1)
    expected = net(x)
    torch.manual_seed(1)
    assert torch.allclose(result.module(x), expected, atol=1e-5)
