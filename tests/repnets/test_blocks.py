import pytest
import torch

from repnets import fuse
from repnets.blocks import MobileOneBlock, RepVGGBlock, SqueezeExcite

BLOCKS = {
    "repvgg": (RepVGGBlock(6, 6), (2, 3)),
    "repvgg stride 2": (RepVGGBlock(6, 8, stride=2), (2, 2)),
    "repvgg wider": (RepVGGBlock(6, 8), (2, 2)),
    "repvgg grouped": (RepVGGBlock(8, 8, groups=4), (2, 3)),
    "repvgg 5x5, gated": (RepVGGBlock(16, 16, kernel_size=5, use_se=True), (2, 3)),
    "mobileone depthwise": (MobileOneBlock(6, 6, 3, groups=6, branches=3), (4, 5)),
    "mobileone depthwise stride 2": (MobileOneBlock(6, 6, 3, stride=2, groups=6), (2, 2)),
    "mobileone pointwise": (MobileOneBlock(6, 6, 1, branches=2), (2, 3)),
    "mobileone pointwise, gated": (MobileOneBlock(8, 16, 1, branches=2, use_se=True), (2, 2)),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_folds_into_one_convolution(randomise, relative_error, name):
    block, (convolutions, batch_norms) = BLOCKS[name]
    block = randomise(block).double()
    in_channels = next(block.parameters()).shape[1] * next(m for m in block.modules() if hasattr(m, "groups")).groups
    result = fuse(block, torch.zeros(1, in_channels, 16, 16, dtype=torch.float64))
    (region,) = result.report.regions
    assert (region.convolutions, region.batch_norms) == (convolutions, batch_norms)
    assert result.report.after.batch_norms == 0
    assert region.macs_after < region.macs_before
    for size in ((3, 16, 16), (1, 9, 14)):
        x = torch.randn(size[0], in_channels, *size[1:], dtype=torch.float64)
        with torch.no_grad():
            assert relative_error(result.module(x), block(x)) < 1e-13


def test_which_branches_there_are():
    assert RepVGGBlock(4, 4).identity is not None
    assert RepVGGBlock(4, 8).identity is None
    assert RepVGGBlock(4, 4, stride=2).identity is None
    assert MobileOneBlock(4, 4, 3, branches=3).scale is not None
    assert MobileOneBlock(4, 4, 1).scale is None
    assert MobileOneBlock(4, 4, 1).skip is not None
    assert MobileOneBlock(4, 4, 1, stride=2).skip is None
    assert len(MobileOneBlock(4, 4, 3, branches=3).convs) == 3


def test_squeeze_excite_scales_channels_between_0_and_1():
    x = torch.rand(2, 8, 4, 4) + 1
    gates = SqueezeExcite(8, 2)(x) / x
    assert torch.allclose(gates, gates[:, :, :1, :1].expand_as(gates))
    assert gates.min() > 0 and gates.max() < 1
