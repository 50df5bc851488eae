"""Which regions are found, and why the rest is refused: small networks, one trap each."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from repnets import FuseResult, fuse
from tests.fixtures.layers import Layers


def conv(in_channels=4, out_channels=4, kernel=3, padding=1, **options) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, padding=padding, bias=False, **options)


def norm(channels=4, **options) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, **options)


@pytest.fixture
def fold(randomise, relative_error):
    """Fuses a float64 network, and holds the result against it at two sizes."""

    def check(net: nn.Module, channels: int = 4, sizes=((2, 12, 12), (1, 9, 10))) -> FuseResult:
        net = randomise(net.double())
        result = fuse(net, torch.zeros(1, channels, 12, 12, dtype=torch.float64))
        for batch, *size in sizes:
            x = torch.randn(batch, channels, *size, dtype=torch.float64)
            with torch.no_grad():
                assert relative_error(result.module(x), net(x)) < 1e-12
        return result

    return check


def reasons(result: FuseResult) -> list[tuple[str, str]]:
    return [(refusal.path, refusal.reason) for refusal in result.report.refusals]


def test_branches_of_every_shape_become_one_convolution(fold):
    net = Layers(
        lambda m, x: m.a(m.square(x)) + m.b(m.wide(x)) + m.c(m.tall(x)) + m.d(m.large(x)) + m.depthwise(x) + x,
        square=conv(),
        a=norm(),
        wide=conv(kernel=(1, 3), padding=(0, 1)),
        b=norm(affine=False),
        tall=nn.Conv2d(4, 4, (3, 1), padding=(1, 0)),
        c=norm(),
        large=conv(kernel=5, padding=2, groups=2),
        d=norm(),
        depthwise=conv(kernel=1, padding=0, groups=4),
    )
    (region,) = fold(net, sizes=((1, 12, 12),)).report.regions
    assert (region.convolutions, region.batch_norms, region.kernel_size, region.groups) == (5, 4, (5, 5), 1)


@pytest.mark.parametrize(
    ("rank", "layer", "batch_norm"), [(1, nn.Conv1d, nn.BatchNorm1d), (3, nn.Conv3d, nn.BatchNorm3d)]
)
def test_signals_and_volumes_fold_like_images(randomise, relative_error, rank, layer, batch_norm):
    net = Layers(
        lambda m, x: m.a(m.square(x)) + m.b(x),
        square=layer(4, 4, 3, padding=1),
        a=batch_norm(4),
        b=batch_norm(4),
    )
    net = randomise(net.double())
    x = torch.randn(2, 4, *[6] * rank, dtype=torch.float64)
    result = fuse(net, x)
    assert isinstance(result.module.get_submodule(result.report.regions[0].name), layer)
    assert relative_error(result.module(x), net(x).detach()) < 1e-13


def test_a_convolution_padded_to_the_same_size(fold):
    result = fold(Layers(lambda m, x: m.n(m.c(x)), c=conv(padding="same", dilation=2), n=norm()))
    assert result.report.regions[0].padding == (2, 2)


def test_a_convolution_used_elsewhere_too_is_not_computed_twice(fold):
    result = fold(Layers(lambda m, x: (lambda y: m.n(y) * y.sigmoid())(m.c(x)), c=conv(), n=norm()))
    assert result.report.regions == ()
    assert reasons(result) == [
        ("n", "the convolution conv2d is needed elsewhere too, so it would be computed twice"),
        ("", "it multiplies two feature maps, which is not linear"),
    ]


def test_two_batch_norms_of_one_convolution_fold_together_or_not_at_all(fold):
    layers = {"c": conv(), "a": norm(), "b": norm()}
    apart = fold(Layers(lambda m, x: (lambda y: m.a(y).relu() + m.b(y).sigmoid())(m.c(x)), **layers))
    assert apart.report.regions == ()
    together = fold(Layers(lambda m, x: (lambda y: m.a(y) + m.b(y))(m.c(x)).relu(), **layers))
    assert [(region.convolutions, region.batch_norms) for region in together.report.regions] == [(1, 2)]


def test_a_branch_used_elsewhere_stays_and_the_rest_folds(fold):
    def forward(m, x):
        dense, point = m.a(m.dense(x)), m.b(m.point(x))
        return (dense + point).relu() * dense

    result = fold(Layers(forward, dense=conv(), a=norm(), point=conv(kernel=1, padding=0), b=norm()))
    # one 3x3 for the sum would cost more than the 1x1 it could remove
    assert [region.name for region in result.report.regions] == ["dense", "point"]
    (_, reason), (_, product) = reasons(result)
    assert "one convolution would cost 20,736 multiply-accumulates and replace 2,304, since conv2d is" in reason
    assert product == "it multiplies two feature maps, which is not linear"


def test_a_shared_block_stays_shared(fold):
    net = Layers(lambda m, x: m.n(m.c(m.n(m.c(x)).relu())), c=conv(), n=norm())
    result = fold(net)
    assert [region.name for region in result.report.regions] == ["c", "c"]
    assert result.report.after.parameters == 4 * 4 * 9 + 4


def test_a_shared_convolution_under_two_batch_norms_becomes_two(fold):
    net = Layers(lambda m, x: m.b(m.c(m.a(m.c(x)).relu())), c=conv(), a=norm(), b=norm())
    assert [region.name for region in fold(net).report.regions] == ["c", "c_2"]


def test_branches_that_differ_in_stride_are_not_summed(randomise, relative_error):
    # at 8 pixels the two outputs happen to agree in size, and at no other size
    net = Layers(
        lambda m, x: m.a(m.strided(x)) + m.b(m.large(x)),
        strided=conv(stride=2),
        a=norm(),
        large=conv(kernel=5, padding=0),
        b=norm(),
    )
    net = randomise(net)
    x = torch.randn(1, 4, 8, 8)
    result = fuse(net, x)
    assert [region.name for region in result.report.regions] == ["strided", "large"]
    assert result.report.input_shape == (None, 4, 8, 8)
    assert reasons(result) == [("", "the branches differ in stride, (2, 2) and (1, 1)")]
    assert relative_error(result.module(x), net(x).detach()) < 1e-5


def test_a_sum_of_different_sources_is_not_folded(fold):
    net = Layers(lambda m, x: m.n(m.c(x)) + m.d(x.relu()), c=conv(), n=norm(), d=conv())
    result = fold(net)
    assert [region.name for region in result.report.regions] == ["c"] or result.report.regions[0].batch_norms == 1
    assert reasons(result) == [("", "its branches start from different tensors, x and relu")]


def test_batch_norms_without_a_convolution_stay(fold):
    result = fold(Layers(lambda m, x: m.b(m.a(x).relu() + 1), a=norm(), b=norm()))
    assert result.report.regions == ()
    assert reasons(result) == [
        ("a", "there is no convolution before it to fold it into"),
        ("", "there is no convolution before it to fold it into"),
        ("b", "there is no convolution before it to fold it into"),
    ]


def test_a_batch_norm_without_running_statistics_stays(fold):
    result = fold(Layers(lambda m, x: m.n(m.c(x)), c=conv(), n=norm(track_running_stats=False)))
    assert result.report.regions == ()
    ((path, reason),) = reasons(result)
    assert path == "n"
    assert reason.startswith("it normalises with the statistics of each batch (track_running_stats=False)")


def test_an_instance_norm_of_each_image_stays(fold):
    ((path, reason),) = reasons(fold(Layers(lambda m, x: m.n(m.c(x)), c=conv(), n=nn.InstanceNorm2d(4))))
    assert path == "n"
    assert reason.startswith("it normalises with the statistics of each image")


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_long_chain_of_residual_blocks_folds(fold, kernel):
    """Every block reads the one before it twice: made anew for each reader, weights would take 2**24 times as long."""
    count = 24 if kernel == 1 else 6

    def forward(m, x):
        for at in range(count):
            x = x + m.get_submodule(f"n{at}")(m.get_submodule(f"c{at}")(x))
        return x.relu()

    layers = {f"n{at}": norm() for at in range(count)}
    layers |= {f"c{at}": conv(kernel=kernel, padding=kernel // 2) for at in range(count)}
    result = fold(Layers(forward, **layers))
    assert result.report.after.batch_norms == 0
    if kernel == 1:
        assert result.report.after.convolutions == 1


def test_a_weighted_sum_and_a_computed_weight_fold(fold):
    def forward(m, x):
        return torch.add(m.c(x), F.conv2d(x, m.d.weight * 2, padding=1), alpha=3).relu()

    result = fold(Layers(forward, c=conv(), d=conv()))
    assert [(region.convolutions, region.name) for region in result.report.regions] == [(2, "c")]
    assert reasons(result) == []


def test_uneven_padding_is_not_paid_for_with_zero_taps(randomise):
    # even kernels padded to the same size have one zero more at the end
    net = randomise(Layers(lambda m, x: m.n(m.c(x)), c=conv(kernel=4, padding="same"), n=norm()))
    with pytest.warns(UserWarning, match="even kernel lengths"):
        result = fuse(net, torch.zeros(1, 4, 12, 12))
    assert reasons(result) == [("n", "one convolution would cost 57,600 multiply-accumulates and replace 36,864")]


def test_a_lone_convolution_is_no_region_and_no_refusal(fold):
    result = fold(Layers(lambda m, x: m.c(x).relu(), c=conv()))
    assert (result.report.regions, result.report.refusals) == ((), ())
    assert list(result.module.state_dict()) == ["c.weight"]


def test_padding_that_differs_at_its_ends_stays_before_the_layer(fold):
    """A layer would make up for it by zero taps, and runtimes pad at either end on the way."""
    net = Layers(
        lambda m, x: m.n(m.c(F.pad(x, (1, 2, 1, 2)))), c=conv(kernel=5, padding=0, stride=2, groups=4), n=norm()
    )
    result = fold(net)
    (layer,) = [module for module in result.module.modules() if isinstance(module, nn.Conv2d)]
    assert (layer.kernel_size, layer.padding) == ((5, 5), (0, 0))
    assert len(result.module.graph.find_nodes(op="call_function", target=torch.ops.aten.pad.default)) == 1
    assert not result.module.graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default)


def test_whoever_counts_calls_alone_gets_that_padding_into_the_layer(randomise):
    net = Layers(
        lambda m, x: m.n(m.c(F.pad(x, (1, 2, 1, 2)))), c=conv(kernel=5, padding=0, stride=2, groups=4), n=norm()
    )
    result = fuse(randomise(net), torch.zeros(1, 4, 12, 12), cost=lambda work: 1.0)
    (layer,) = [module for module in result.module.modules() if isinstance(module, nn.Conv2d)]
    assert (layer.kernel_size, layer.padding) == ((6, 6), (2, 2))


def test_padding_that_is_the_same_at_both_ends_becomes_the_layers_own(fold):
    net = Layers(
        lambda m, x: m.n(m.c(F.pad(x, (2, 2, 2, 2)))), c=conv(kernel=5, padding=0, stride=2, groups=4), n=norm()
    )
    result = fold(net)
    (layer,) = [module for module in result.module.modules() if isinstance(module, nn.Conv2d)]
    assert (layer.kernel_size, layer.padding) == ((5, 5), (2, 2))
    assert not result.module.graph.find_nodes(op="call_function", target=torch.ops.aten.pad.default)


def test_what_reads_a_needed_convolution_becomes_no_second_one(fold):
    """A chain of calls for each channel is a factor and a term; a depthwise convolution would be a layer more."""

    def forward(m, x):
        y = m.d(m.c(x).relu())
        return y.relu() + ((m.a(y) * 0.5 + 1) - m.b(y)).sigmoid()

    report = fold(Layers(forward, c=conv(), d=conv(groups=4), a=norm(), b=norm())).report
    assert (report.after.convolutions, report.after.batch_norms, report.after.macs) == (2, 0, report.before.macs)
    assert [region.kind for region in report.regions] == ["ScaleShift"]
    assert report.after.operations == report.before.operations - 5 + 2


def test_a_map_without_channels_is_left(fold):
    def forward(m, x):
        return torch.cat([part * 2 for part in m.n(m.c(x)).split([0, 4], 1)], 1)

    assert fold(Layers(forward, c=conv(), n=norm())).report.after.batch_norms == 0


def test_a_row_written_on_a_pooled_map_ends_nothing(fold):
    def forward(m, x):
        y = m.n(m.c(x)).mean((2, 3), keepdim=True)
        y[:, :, 0] *= 2
        return m.n(F.pad(y, (0, 0, -1, 2))[:, :, 1:])

    fold(Layers(forward, c=conv(), n=norm()))


def test_a_long_piece_is_settled_in_one_pass_over_its_changes(monkeypatch):
    """Each step tries again only what is near it, so that trials grow with the length of a piece and not its square."""
    from repnets.fusion import search

    trials = []
    tried = search._Search._best_change
    monkeypatch.setattr(search._Search, "_best_change", lambda self, node: trials.append(node) or tried(self, node))
    counts = []
    for length in (10, 20, 40):
        graph = torch.fx.Graph()
        nodes = [graph.placeholder(f"x{at}") for at in range(2 * length)]
        ways = {}
        for at, node in enumerate(nodes):  # a layer and what folds into it, again and again
            ways[node] = [search.Way(None, tuple(nodes[max(0, at - 1) : at]), 1.0, 1 - at % 2)]
            if at % 2:
                ways[node].append(search.Way(None, tuple(nodes[max(0, at - 2) : at - 1]), 1.0, 1))
        trials.clear()
        assert len(search.cheapest(ways, nodes[-1:])) == length
        counts.append(len(trials))
    assert counts[2] < 2.5 * counts[1] < 6.5 * counts[0]


@pytest.mark.parametrize(
    "crop", [lambda y: y[:, :, 2:-2, 2:-2], lambda y: F.pad(y, (-2, -2, -2, -2))], ids=["slice", "pad"]
)
def test_a_crop_takes_away_the_border_that_keeps_layers_apart(fold, crop):
    # past its ends the batch norm gives its term, and each 1x1 sees zeros there in place of it
    net = Layers(lambda m, x: crop(m.c(m.b(m.n(m.a(x))))), a=conv(), n=norm())
    net.b, net.c = (nn.Conv2d(4, 4, 1, padding=1) for _ in range(2))
    result = fold(net)
    (region,) = result.report.regions
    assert (region.convolutions, region.batch_norms, region.padding) == (3, 1, (1, 1))
    assert fuse(result.module, torch.zeros(1, 4, 12, 12, dtype=torch.float64)).report.regions == ()
