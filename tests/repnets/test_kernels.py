import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from repnets import kernels
from repnets.kernels import AffineConv

TIGHT = 1e-12
CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def apply(op: AffineConv, x: Tensor) -> Tensor:
    """`op` by the convolution that it is emitted as."""
    shape = kernels.conv_shape(op)
    weight = kernels.conv_weight(op)
    assert weight.shape == (shape.out_channels, shape.in_channels // shape.groups, *shape.kernel_size)
    conv = CONVS[len(shape.stride)]
    return conv(x, weight, op.bias, shape.stride, shape.padding, shape.dilation, shape.groups)


def padded_conv(x: Tensor, weight: Tensor, bias: Tensor, spec: dict) -> Tensor:
    """A convolution with its own padding at each end, done the slow way."""
    pads = [end for pair in zip(spec["pad_lo"][::-1], spec["pad_hi"][::-1], strict=True) for end in pair]
    conv = CONVS[weight.dim() - 2]
    return conv(F.pad(x, pads), weight, bias, spec["stride"], 0, spec["dilation"], spec["groups"])


@st.composite
def branches(draw: st.DrawFn) -> dict:
    """Convolutions on one input that may be added: one stride, one shrinkage, everything else their own."""
    rank = draw(st.integers(1, 3))
    in_channels, out_channels = draw(st.sampled_from([(4, 4), (4, 8), (6, 12), (12, 6)]))
    axes = st.tuples(*[st.integers(1, 3)] * rank)
    stride = draw(axes)
    specs, weights = [], []
    for _ in range(draw(st.integers(1, 3))):
        sizes, dilation = draw(axes), draw(st.tuples(*[st.integers(1, 2)] * rank))
        extent = [(size - 1) * step + 1 for size, step in zip(sizes, dilation, strict=True)]
        pad_lo = draw(st.tuples(*[st.integers(0, 3)] * rank))
        # shrinkage 1 on every axis, so an end may be cropped instead of padded
        pad_hi = tuple(k - 1 - lo for k, lo in zip(extent, pad_lo, strict=True))
        groups = draw(st.sampled_from([g for g in (1, 2, 4, 6) if in_channels % g == out_channels % g == 0]))
        specs.append(dict(stride=stride, pad_lo=pad_lo, pad_hi=pad_hi, dilation=dilation, groups=groups))
        weights.append((out_channels, in_channels // groups, *sizes))
    return {"specs": specs, "weights": weights, "size": draw(st.tuples(*[st.integers(6, 9)] * rank)),
            "in_channels": in_channels, "seed": draw(st.integers(0, 2**16))}  # fmt: skip


@given(branches())
@settings(max_examples=40, deadline=None)
def test_a_sum_of_convolutions_is_one_convolution(relative_error, case):
    generator = torch.Generator().manual_seed(case["seed"])

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = randn(2, case["in_channels"], *case["size"])
    total, wanted = None, 0
    for spec, shape in zip(case["specs"], case["weights"], strict=True):
        weight, bias, scale, shift = randn(*shape), randn(shape[0]), randn(shape[0]), randn(shape[0])
        op = kernels.scale_rows(kernels.from_conv(weight, bias, **spec), scale, shift)
        per_channel = (1, -1, *[1] * (x.dim() - 2))
        wanted = wanted + padded_conv(x, weight, bias, spec) * scale.view(per_channel) + shift.view(per_channel)
        if total is not None:
            assert kernels.sum_obstacle(total, op) is None
        total = op if total is None else kernels.add(total, op)
    assert relative_error(apply(total, x), wanted) < TIGHT


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_identity_is_a_depthwise_convolution(rank):
    x = torch.randn(2, 6, *[5] * rank, dtype=torch.float64)
    op = kernels.identity(6, rank)
    assert kernels.conv_shape(op).groups == 6
    assert torch.equal(apply(op, x), x)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_the_identity_joins_a_convolution_of_any_groups(relative_error, groups):
    weight = torch.randn(8, 8 // groups, 3, 3, dtype=torch.float64)
    x = torch.randn(1, 8, 7, 6, dtype=torch.float64)
    pads = dict(pad_lo=(1, 1), pad_hi=(1, 1))
    conv = kernels.from_conv(weight, stride=(1, 1), dilation=(1, 1), groups=groups, **pads)
    total = kernels.add(kernels.identity(8, 2), conv)
    assert total.groups == groups
    assert relative_error(apply(total, x), x + F.conv2d(x, weight, padding=1, groups=groups)) < TIGHT


def test_an_operator_added_to_itself_is_doubled(relative_error):
    op = kernels.from_conv(
        torch.randn(3, 2, 3, 3), torch.randn(3), stride=(2, 2), pad_lo=(1, 1), pad_hi=(1, 1), dilation=(1, 1)
    )
    x = torch.randn(1, 2, 9, 8, dtype=torch.float64)
    assert relative_error(apply(kernels.add(op, op), x), 2 * apply(op, x)) < TIGHT


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_rows(relative_error, affine):
    norm = torch.nn.BatchNorm2d(5, affine=affine, eps=1e-3).double().eval()
    with torch.no_grad():
        for tensor in (*norm.parameters(), norm.running_mean, norm.running_var):
            tensor.uniform_(0.5, 1.5)
    x = torch.randn(2, 5, 3, 3, dtype=torch.float64)
    rows = kernels.batch_norm_rows(norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)
    with torch.no_grad():
        assert relative_error(apply(kernels.scale_rows(kernels.identity(5, 2), *rows), x), norm(x)) < TIGHT


def conv_of(sizes, stride=(1, 1), pad_lo=(0, 0), pad_hi=(0, 0), dilation=(1, 1), channels=2) -> AffineConv:
    weight = torch.randn(channels, 2, *sizes, dtype=torch.float64)
    return kernels.from_conv(weight, stride=stride, pad_lo=pad_lo, pad_hi=pad_hi, dilation=dilation)


def test_dilation_is_found_again():
    dilated = conv_of((3, 3), pad_lo=(4, 2), pad_hi=(4, 2), dilation=(4, 2))
    assert kernels.conv_shape(dilated).dilation == (4, 2)
    with_pointwise = kernels.conv_shape(kernels.add(dilated, conv_of((1, 1))))
    assert (with_pointwise.kernel_size, with_pointwise.dilation) == ((3, 3), (4, 2))
    wide = conv_of((3, 3), pad_lo=(6, 3), pad_hi=(6, 3), dilation=(6, 3))
    mixed = kernels.conv_shape(kernels.add(dilated, wide))
    assert (mixed.kernel_size, mixed.dilation, mixed.padding) == ((7, 7), (2, 1), (6, 3))


def test_crossing_strips_make_a_square():
    strips = kernels.add(conv_of((1, 3), pad_lo=(0, 1), pad_hi=(0, 1)), conv_of((3, 1), pad_lo=(1, 0), pad_hi=(1, 0)))
    assert kernels.conv_shape(strips).kernel_size == (3, 3)


def test_uneven_padding_becomes_zero_taps():
    shape = kernels.conv_shape(conv_of((4, 4), pad_lo=(1, 1), pad_hi=(2, 2)))
    assert (shape.kernel_size, shape.padding) == ((5, 5), (2, 2))


def test_obstacles_to_a_sum_say_what_differs():
    assert "stride, (1, 1) and (2, 2)" in kernels.sum_obstacle(conv_of((1, 1)), conv_of((1, 1), stride=(2, 2)))
    assert "(0, 0) and (2, 2)" in kernels.sum_obstacle(conv_of((2, 2), pad_lo=(1, 1), pad_hi=(1, 1)), conv_of((2, 2)))
    assert "2 channels and the other 4" in kernels.sum_obstacle(conv_of((1, 1)), conv_of((1, 1), channels=4))


def test_macs_count_groups_and_taps():
    op = kernels.from_conv(
        torch.randn(8, 2, 3, 1), stride=(1, 1), pad_lo=(0, 0), pad_hi=(0, 0), dilation=(1, 1), groups=4
    )
    assert kernels.conv_shape(op).macs_per_position == 8 * 2 * 3
