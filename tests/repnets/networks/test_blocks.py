"""What each block computes, against its formula written out here, and which shapes it takes."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, pad

from repnets.networks.blocks import (
    AsymmetricConvBlock,
    ConvBN,
    DiverseBranchBlock,
    LargeKernelConv,
    MobileOneBlock,
    PaddingBatchNorm,
    QARepVGGBlock,
    RepLKBlock,
    RepVGGBlock,
    ResidualPointwise,
    SqueezeExcite,
)

BLOCKS = {
    "repvgg": RepVGGBlock,
    "qarepvgg": QARepVGGBlock,
    "mobileone": lambda *channels, **options: MobileOneBlock(*channels, kernel_size=3, branches=2, **options),
    "diverse": lambda *channels, **options: DiverseBranchBlock(*channels, kernel_size=3, **options),
    "diverse 5x5": lambda *channels, **options: DiverseBranchBlock(*channels, kernel_size=5, **options),
    "asymmetric": lambda *channels, **options: AsymmetricConvBlock(*channels, kernel_size=3, **options),
}
SHAPES = {  # channels in and out, stride, groups
    "same": (8, 8, 1, 1),
    "wider": (8, 12, 1, 1),
    "stride 2": (8, 12, 2, 1),
    "same, stride 2": (8, 8, 2, 1),
    "grouped": (8, 8, 1, 4),
    "grouped, stride 2": (8, 12, 2, 4),
    "depthwise": (8, 8, 1, 8),
    "depthwise, stride 2": (8, 8, 2, 8),
    "a group for each channel, wider": (8, 16, 1, 8),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def trained(randomise):
    return lambda block: randomise(block).double()


def norm(bn: nn.BatchNorm2d, x: Tensor) -> Tensor:
    mean, var, weight, bias = (t.view(-1, 1, 1) for t in (bn.running_mean, bn.running_var, bn.weight, bn.bias))
    return (x - mean) / (var + bn.eps).sqrt() * weight + bias


def conv_bn(branch: ConvBN, x: Tensor, stride: int, padding: int | tuple[int, int], groups: int) -> Tensor:
    return norm(branch.bn, conv2d(x, branch.conv.weight, None, stride, padding, 1, groups))


def gate(se: SqueezeExcite, x: Tensor) -> Tensor:
    mean = x.sum((2, 3)) / x[0, 0].numel()
    inner = (mean @ se.reduce.weight.flatten(1).T + se.reduce.bias).clamp(min=0)
    return (1 + (-(inner @ se.expand.weight.flatten(1).T + se.expand.bias)).exp()).reciprocal()[..., None, None]


def repvgg(block: RepVGGBlock, x: Tensor, stride: int, groups: int) -> Tensor:
    y = conv_bn(block.dense, x, stride, 1, groups) + conv_bn(block.pointwise, x, stride, 0, groups)
    if x.shape[1] == y.shape[1] and stride == 1:
        y = y + norm(block.identity, x)
    return y.clamp(min=0)


def qarepvgg(block: QARepVGGBlock, x: Tensor, stride: int, groups: int) -> Tensor:
    y = conv_bn(block.dense, x, stride, 1, groups) + conv2d(x, block.pointwise.weight, None, stride, 0, 1, groups)
    if x.shape[1] == y.shape[1] and stride == 1:
        y = y + x
    return norm(block.bn, y).clamp(min=0)


def mobileone(block: MobileOneBlock, x: Tensor, stride: int, groups: int) -> Tensor:
    first, second = (conv_bn(branch, x, stride, 1, groups) for branch in block.convs)
    y = first + second + conv_bn(block.scale, x, stride, 0, groups)
    if x.shape[1] == y.shape[1] and stride == 1:
        y = y + norm(block.skip, x)
    return y.clamp(min=0)


def diverse(block: DiverseBranchBlock, x: Tensor, stride: int, groups: int) -> Tensor:
    """Each branch of one convolution after another is applied to the image padded with zeros."""
    k = block.dense.conv.kernel_size[0]
    padded = pad(x, [k // 2] * 4)
    y = conv_bn(block.dense, padded, stride, 0, groups)
    sequence, average = block.sequence, block.average
    if groups == x.shape[1] == y.shape[1]:
        inner = conv2d(padded, sequence.pointwise.weight, groups=groups)
        pooled = avg_pool2d(padded, k, stride)
    else:
        width = x.shape[1] // groups
        kernel = torch.eye(width, dtype=x.dtype).repeat(groups, 1)[..., None, None] + sequence.pointwise.residual
        inner = conv2d(padded, kernel, groups=groups)
        outer = conv2d(padded, average.pointwise.weight, groups=groups)
        pooled = avg_pool2d(norm(average.pad.bn, outer), k, stride)
        y = y + conv_bn(block.pointwise, x, stride, 0, groups)
    return y + conv_bn(sequence.dense, norm(sequence.pad.bn, inner), stride, 0, groups) + norm(average.bn, pooled)


def asymmetric(block: AsymmetricConvBlock, x: Tensor, stride: int, groups: int) -> Tensor:
    horizontal = conv_bn(block.horizontal, x, stride, (0, 1), groups)
    vertical = conv_bn(block.vertical, x, stride, (1, 0), groups)
    return conv_bn(block.square, x, stride, 1, groups) + horizontal + vertical


FORMULAS = {
    "repvgg": repvgg,
    "qarepvgg": qarepvgg,
    "mobileone": mobileone,
    "diverse": diverse,
    "diverse 5x5": diverse,
    "asymmetric": asymmetric,
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_computes_its_formula(trained, relative_error, name, shape):
    in_channels, out_channels, stride, groups = shape
    block = trained(BLOCKS[name](in_channels, out_channels, stride=stride, groups=groups))
    for height, width in ((9, 14), (8, 8), (1, 3)):
        x = torch.randn(2, in_channels, height, width, dtype=torch.float64)
        with torch.no_grad():
            y = block(x)
            assert y.shape == (2, out_channels, -(-height // stride), -(-width // stride))
            assert relative_error(y, FORMULAS[name](block, x, stride, groups)) < 1e-13


def test_mobileones_pointwise_block_has_no_scale_branch(trained, relative_error):
    block = trained(MobileOneBlock(6, 6, kernel_size=1, branches=3))
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    with torch.no_grad():
        wanted = norm(block.skip, x) + sum(conv_bn(branch, x, 1, 0, 1) for branch in block.convs)
        assert relative_error(block(x), wanted.clamp(min=0)) < 1e-13


@pytest.mark.parametrize("kind", [RepVGGBlock, MobileOneBlock])
def test_a_gated_block_scales_the_sum_before_the_relu(trained, relative_error, kind):
    block = trained(kind(16, 16, kernel_size=3, use_se=True))
    x = torch.randn(2, 16, 5, 7, dtype=torch.float64)
    with torch.no_grad():
        if kind is RepVGGBlock:
            y = conv_bn(block.dense, x, 1, 1, 1) + conv_bn(block.pointwise, x, 1, 0, 1) + norm(block.identity, x)
        else:
            y = conv_bn(block.convs[0], x, 1, 1, 1) + conv_bn(block.scale, x, 1, 0, 1) + norm(block.skip, x)
        assert relative_error(block(x), (y * gate(block.se, y)).clamp(min=0)) < 1e-13


@pytest.mark.parametrize("stride", [1, 2])
def test_large_and_small_kernel_are_summed(trained, relative_error, stride):
    block = trained(LargeKernelConv(6, kernel_size=13, small_kernel_size=3, stride=stride))
    x = torch.randn(2, 6, 9, 16, dtype=torch.float64)
    with torch.no_grad():
        wanted = conv_bn(block.large, x, stride, 6, 6) + conv_bn(block.small, x, stride, 1, 6)
        assert wanted.shape[2:] == (-(-9 // stride), 16 // stride)
        assert relative_error(block(x), wanted) < 1e-13


@pytest.mark.parametrize(("inner", "wide"), [(None, 6), (10, 10)])
def test_the_block_of_replknet(trained, relative_error, inner, wide):
    block = trained(RepLKBlock(6, kernel_size=7, inner_channels=inner))
    x = torch.randn(2, 6, 9, 14, dtype=torch.float64)
    with torch.no_grad():
        y = conv_bn(block.expand, norm(block.bn, x), 1, 0, 1).clamp(min=0)
        assert y.shape[1] == wide
        y = conv_bn(block.spatial.large, y, 1, 3, wide) + conv_bn(block.spatial.small, y, 1, 2, wide)
        assert relative_error(block(x), x + conv_bn(block.project, y.clamp(min=0), 1, 0, 1)) < 1e-13


def test_which_branches_there_are():
    assert RepVGGBlock(4, 4).identity is not None
    assert RepVGGBlock(4, 8).identity is None
    assert RepVGGBlock(4, 4, stride=2).identity is None
    assert MobileOneBlock(4, 4, 3, branches=3).scale is not None
    assert MobileOneBlock(4, 4, 1).scale is None
    assert MobileOneBlock(4, 4, 1).skip is not None
    assert MobileOneBlock(4, 4, 1, stride=2).skip is None
    assert len(MobileOneBlock(4, 4, 3, branches=3).convs) == 3
    assert DiverseBranchBlock(4, 4, 3, groups=2).pointwise is not None
    assert DiverseBranchBlock(4, 8, 3, groups=4).pointwise is not None
    assert DiverseBranchBlock(4, 4, 3, groups=4).pointwise is None


def test_the_batch_norms_of_qarepvgg():
    """The 1x1 convolution and the identity have none: that is what it is for."""
    norms = {name for name, module in QARepVGGBlock(4, 4).named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert norms == {"dense.bn", "bn"}


def test_the_width_between_the_two_convolutions_of_a_diverse_branch():
    assert DiverseBranchBlock(4, 8, 3).sequence.dense.conv.in_channels == 4
    assert DiverseBranchBlock(4, 4, 3, groups=4).sequence.dense.conv.in_channels == 8


@pytest.mark.parametrize("groups", [1, 2])
def test_a_residual_pointwise_convolution_begins_as_the_identity(groups):
    layer = ResidualPointwise(6, groups)
    x = torch.randn(2, 6, 3, 5)
    assert torch.equal(layer(x), x)
    assert list(layer.state_dict()) == ["residual"]


def test_padding_is_what_the_batch_norm_makes_of_zero(trained):
    layer = trained(PaddingBatchNorm(4, padding=(2, 2)))
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    with torch.no_grad():
        wanted = layer.bn(torch.zeros(2, 4, 9, 10, dtype=torch.float64))
        wanted[:, :, 2:-2, 2:-2] = layer.bn(x)
        torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-14)


def test_padding_in_training_follows_the_running_statistics(trained):
    layer = trained(PaddingBatchNorm(4, padding=(1, 1))).train()
    before = layer.bn.running_mean.clone()
    y = layer(torch.randn(2, 4, 5, 6, dtype=torch.float64) + 3)
    assert not torch.equal(layer.bn.running_mean, before)
    inside = y[:, :, 1:-1, 1:-1]
    torch.testing.assert_close(inside.mean((0, 2, 3)), layer.bn.bias, rtol=0, atol=1e-12)
    border = layer.eval().bn(torch.zeros(1, 4, 1, 1, dtype=torch.float64)).expand(2, -1, 1, 8)
    torch.testing.assert_close(y[:, :, :1], border, rtol=0, atol=1e-12)


# a batch norm after it takes away what these biases add
IDLE = {"qarepvgg": ["dense.bn.bias"], "replk": ["bn.bias"]}


@pytest.mark.parametrize("name", [*BLOCKS, "diverse depthwise", "replk"])
def test_every_branch_learns(name):
    if name == "replk":
        block = RepLKBlock(8, kernel_size=7)
    elif name == "diverse depthwise":
        block = DiverseBranchBlock(8, 8, kernel_size=3, groups=8)
    else:
        block = BLOCKS[name](8, 8)
    y = block.double()(torch.randn(4, 8, 9, 9, dtype=torch.float64))
    (y * torch.randn_like(y)).sum().backward()
    still = [name for name, parameter in block.named_parameters() if parameter.grad.abs().max() < 1e-6]
    assert still == IDLE.get(name, [])


def test_squeeze_excite_scales_channels_between_0_and_1():
    x = torch.rand(2, 8, 4, 4) + 1
    gates = SqueezeExcite(8, 2)(x) / x
    assert torch.allclose(gates, gates[:, :, :1, :1].expand_as(gates))
    assert gates.min() > 0 and gates.max() < 1
