"""Every block and network folds as far as its paper says, and computes the same, with random statistics."""

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, pad

import repnets
from repnets import FuseResult
from repnets.networks.blocks import (
    AsymmetricConvBlock,
    DiverseBranchBlock,
    LargeKernelConv,
    MobileOneBlock,
    QARepVGGBlock,
    RepLKBlock,
    RepVGGBlock,
)

# each becomes one convolution: the block, its channels in, and the kernel, stride, padding and groups there will be
ONE = {
    "repvgg": (lambda: RepVGGBlock(6, 6), 6, (3, 1, 1, 1)),
    "repvgg stride 2": (lambda: RepVGGBlock(6, 8, stride=2), 6, (3, 2, 1, 1)),
    "repvgg wider": (lambda: RepVGGBlock(6, 8), 6, (3, 1, 1, 1)),
    "repvgg grouped": (lambda: RepVGGBlock(8, 8, groups=4), 8, (3, 1, 1, 4)),
    "repvgg 5x5": (lambda: RepVGGBlock(16, 16, kernel_size=5), 16, (5, 1, 2, 1)),
    "qarepvgg": (lambda: QARepVGGBlock(6, 6), 6, (3, 1, 1, 1)),
    "qarepvgg stride 2": (lambda: QARepVGGBlock(6, 8, stride=2), 6, (3, 2, 1, 1)),
    "qarepvgg grouped": (lambda: QARepVGGBlock(8, 8, groups=4), 8, (3, 1, 1, 4)),
    "mobileone depthwise": (lambda: MobileOneBlock(6, 6, 3, groups=6, branches=3), 6, (3, 1, 1, 6)),
    "mobileone depthwise stride 2": (lambda: MobileOneBlock(6, 6, 3, stride=2, groups=6), 6, (3, 2, 1, 6)),
    "mobileone pointwise": (lambda: MobileOneBlock(6, 6, 1, branches=2), 6, (1, 1, 0, 1)),
    "asymmetric": (lambda: AsymmetricConvBlock(6, 8, 3), 6, (3, 1, 1, 1)),
    "asymmetric 5x5 stride 2": (lambda: AsymmetricConvBlock(6, 8, 5, stride=2), 6, (5, 2, 2, 1)),
    "asymmetric grouped": (lambda: AsymmetricConvBlock(8, 8, 3, groups=4), 8, (3, 1, 1, 4)),
    "asymmetric depthwise": (lambda: AsymmetricConvBlock(6, 6, 3, groups=6), 6, (3, 1, 1, 6)),
    "large kernel": (lambda: LargeKernelConv(6, 31), 6, (31, 1, 15, 6)),
    "large kernel stride 2": (lambda: LargeKernelConv(6, 13, small_kernel_size=3, stride=2), 6, (13, 2, 6, 6)),
    "diverse": (lambda: DiverseBranchBlock(6, 8, 3), 6, (3, 1, 1, 1)),
    "diverse stride 2": (lambda: DiverseBranchBlock(6, 8, 3, stride=2), 6, (3, 2, 1, 1)),
    "diverse grouped": (lambda: DiverseBranchBlock(8, 8, 3, groups=4), 8, (3, 1, 1, 4)),
    "diverse grouped, stride 2": (lambda: DiverseBranchBlock(8, 12, 3, stride=2, groups=4), 8, (3, 2, 1, 4)),
    "diverse depthwise": (lambda: DiverseBranchBlock(6, 6, 3, groups=6), 6, (3, 1, 1, 6)),
    "diverse depthwise stride 2": (lambda: DiverseBranchBlock(6, 6, 3, stride=2, groups=6), 6, (3, 2, 1, 6)),
    "diverse 5x5": (lambda: DiverseBranchBlock(6, 8, 5), 6, (5, 1, 2, 1)),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def fold(randomise, relative_error):
    """Fuses a network in float64, with random statistics, and holds the result against it."""

    def check(model: nn.Module, channels: int, sizes: tuple[tuple[int, int, int], ...]) -> FuseResult:
        model = randomise(model).double()
        result = repnets.fuse(model, torch.zeros(1, channels, *sizes[0][1:], dtype=torch.float64))
        for batch, *size in sizes:
            x = torch.randn(batch, channels, *size, dtype=torch.float64)
            with torch.no_grad():
                assert relative_error(result.module(x), model(x)) < 1e-12
        return result

    return check


SMALL = ((3, 16, 16), (1, 9, 14), (2, 3, 2))


@pytest.mark.parametrize("name", ONE)
def test_a_block_folds_into_one_convolution(fold, name):
    make_block, channels, (kernel, stride, padding, groups) = ONE[name]
    result = fold(make_block(), channels, SMALL)
    assert (result.report.after.convolutions, result.report.after.batch_norms) == (1, 0)
    (convolution,) = [module for module in result.module.modules() if isinstance(module, nn.Conv2d)]
    assert convolution.groups == groups
    for shape, size in (("kernel_size", kernel), ("stride", stride), ("padding", padding), ("dilation", 1)):
        assert getattr(convolution, shape) == (size, size)
    assert result.report.after.macs < result.report.before.macs
    assert not result.report.refusals


@pytest.mark.parametrize("kind", [RepVGGBlock, MobileOneBlock])
def test_a_gate_stays_and_the_branches_before_it_fold(fold, kind):
    report = fold(kind(16, 16, kernel_size=3, use_se=True), 16, SMALL).report
    assert (report.after.convolutions, report.after.batch_norms, report.after.additions) == (3, 0, 0)


def test_replknets_block_keeps_its_three_convolutions(fold):
    result = fold(RepLKBlock(6, kernel_size=13, inner_channels=10), 6, SMALL)
    assert (result.report.before.convolutions, result.report.before.batch_norms) == (4, 5)
    assert (result.report.after.convolutions, result.report.after.batch_norms) == (3, 0)
    kernels = [module.kernel_size[0] for module in result.module.modules() if isinstance(module, nn.Conv2d)]
    assert sorted(kernels) == [1, 1, 13]


class AsItsAuthorsHaveIt(nn.Module):
    """DBB's 1x1, batch norm and 3x3: the identity added to the kernel, the padding written into the map."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bn = nn.Conv2d(6, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.register_buffer("identity", torch.eye(6)[..., None, None])
        self.second = nn.Conv2d(6, 8, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bn = self.bn
        y = pad(bn(conv2d(x, self.first.weight + self.identity)), [1] * 4)
        value = (bn.bias - bn.running_mean * bn.weight / torch.sqrt(bn.running_var + bn.eps)).view(1, -1, 1, 1)
        y[:, :, :1] = value
        y[:, :, -1:] = value
        y[:, :, :, :1] = value
        y[:, :, :, -1:] = value
        return self.second(y)


def test_the_authors_way_of_writing_it_folds_too(fold):
    report = fold(AsItsAuthorsHaveIt(), 6, SMALL).report
    assert (report.after.convolutions, report.after.batch_norms) == (1, 0)


def test_shuffled_units_fold_block_by_block_and_no_further(fold):
    units = repnets.create_model("repshufflenet_x0_5").stage2[:2]
    result = fold(units, 24, SMALL)
    assert (result.report.before.convolutions, result.report.after.convolutions) == (6, 3)
    assert (result.report.after.batch_norms, result.report.after.additions) == (0, 0)
    again = repnets.fuse(result.module, torch.zeros(1, 24, 16, 16, dtype=torch.float64))
    assert again.report.regions == ()
    assert again.report.before == again.report.after == result.report.after


# convolutions in branches, and those that are left: one a layer of the plain network
NETWORKS = {
    "qarepvgg_a0": (44, 22),
    "repshufflenet_x0_5": (40, 21),
    "repshufflenet_x1_0": (40, 21),
    "resnet18": (20, 20),
    "resnet18_acb": (52, 20),
    "resnet18_dbb": (84, 20),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_folds_to_its_plain_layers(fold, name):
    report = fold(repnets.create_model(name, num_classes=10), 3, ((2, 64, 64), (1, 47, 80))).report
    assert (report.before.convolutions, report.after.convolutions) == NETWORKS[name]
    assert report.after.batch_norms == 0
