"""Transposed convolutions: what folds into them, and what they fold into."""

import pytest
import torch
from torch import Tensor, nn

import repnets
from repnets.fusion import affine_conv, composition
from repnets.fusion.fused_layers import layer_of
from repnets.fusion.transposed_conv import from_transposed_conv

TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
WINDOWS = [  # kernel size, stride, padding, output padding, groups, bias, dilation
    (2, 2, 0, 0, 1, False, 1),
    (3, 2, 1, 1, 2, True, 1),
    (4, 2, 1, 0, 4, True, 1),
    (3, 1, 0, 0, 1, True, 2),
    (1, 3, 0, 2, 1, True, 1),
    (2, 3, 1, 1, 2, False, 2),
]


def settled(model: nn.Module) -> nn.Module:
    """In float64 and eval mode, with batch norms away from their defaults."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, tuple(NORMS.values())):
                for tensor in (*module.parameters(), module.running_mean, module.running_var):
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.double().eval()


def fused_exactly(model: nn.Module, x: Tensor, relative_error, **options: str):
    """The report of fusing a model, whose numbers are the same at the example and at another size."""
    model = settled(model)
    result = repnets.fuse(model, x.double(), **options)
    for other in (x.double(), torch.randn(2, x.shape[1], *[size + 1 for size in x.shape[2:]], dtype=torch.float64)):
        with torch.no_grad():
            assert relative_error(result.module(other), model(other)) < 1e-12
    return result.report


class Scaled(nn.Module):
    """A transposed convolution between constants."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, 3, 2, 1)
        self.gain = nn.Parameter(torch.rand(6, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return (self.up(x * 2) * self.gain + 1) / 3


class Parallel(nn.Module):
    """Transposed convolutions of one input, added."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return sum(branch(x) for branch in self.branches)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_transposed_convolution_is_emitted_as_it_is(relative_error, rank, window):
    size, stride, padding, output_padding, groups, _, dilation = window
    weight, bias = torch.randn(4, 8 // groups, *[size] * rank, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    axes = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation}
    op = from_transposed_conv(
        lambda: weight, weight.shape, lambda: bias, **{name: (n,) * rank for name, n in axes.items()}, groups=groups
    )
    call = (nn.functional.conv_transpose1d, nn.functional.conv_transpose2d, nn.functional.conv_transpose3d)[rank - 1]
    x = torch.randn(2, 4, *range(4, 4 + rank), dtype=torch.float64)
    layer = layer_of(op, rank)
    assert isinstance(layer, TRANSPOSED[rank]) and layer.kernel_size == (size,) * rank
    assert relative_error(layer(x), call(x, weight, bias, stride, padding, output_padding, groups, dilation)) < 1e-14


@pytest.mark.parametrize(("rank", "window"), [*((2, window) for window in WINDOWS), (1, WINDOWS[1]), (3, WINDOWS[1])])
def test_a_batch_norm_folds_into_the_transposed_convolution_before_it(relative_error, rank, window):
    model = nn.Sequential(TRANSPOSED[rank](4, 8, *window), NORMS[rank](8))
    report = fused_exactly(model, torch.randn(1, 4, *[4] * rank), relative_error)
    (region,) = report.regions
    assert (report.after.batch_norms, report.after.convolutions) == (0, 1)
    assert (region.kind, region.stride, region.output_padding) == (
        f"ConvTranspose{rank}d", (window[1],) * rank, (window[3],) * rank,
    )  # fmt: skip
    assert report.after.macs == report.before.macs == 4 ** (rank + 1) * 8 // window[4] * window[0] ** rank


def test_constants_fold_into_it(relative_error):
    report = fused_exactly(Scaled(), torch.randn(1, 4, 5, 6), relative_error)
    assert report.after.operations == 1


@pytest.mark.parametrize(
    "layers",
    [
        (nn.ConvTranspose2d(4, 8, 2, 2), nn.Conv2d(8, 2, 1)),
        (nn.Conv2d(4, 16, 1, bias=False), nn.ConvTranspose2d(16, 4, 4, 2, 1), nn.BatchNorm2d(4)),
        (nn.ConvTranspose2d(4, 8, 2, 2, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)),
        (nn.ConvTranspose2d(4, 4, 2, 2, bias=False), nn.ConvTranspose2d(4, 4, 1, 1)),
    ],
    ids=["after", "before", "norm between", "stride 1"],
)
def test_a_1x1_folds_with_it(relative_error, layers):
    report = fused_exactly(nn.Sequential(*layers), torch.randn(1, 4, 6, 7), relative_error)
    assert (report.after.convolutions, report.after.batch_norms) == (1, 0)
    assert report.regions[0].kind == "ConvTranspose2d"


def test_parallel_ones_are_one(relative_error):
    branches = [
        nn.Sequential(nn.ConvTranspose2d(4, 4, 4, 2, 1, bias=False), nn.BatchNorm2d(4)),
        nn.Sequential(nn.ConvTranspose2d(4, 4, 2, 2, groups=2), nn.BatchNorm2d(4)),
    ]
    report = fused_exactly(Parallel(*branches), torch.randn(1, 4, 6, 7), relative_error)
    assert (report.after.operations, report.regions[0].kernel_size) == (1, (4, 4))


def test_one_of_stride_1_is_added_to_a_convolution(relative_error):
    branches = [nn.ConvTranspose2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Identity()]
    report = fused_exactly(Parallel(*branches), torch.randn(1, 4, 6, 7), relative_error)
    assert (report.after.operations, report.regions[0].kind) == (1, "Conv2d")


def test_a_bias_before_it_is_not_spread(relative_error):
    model = nn.Sequential(nn.Conv2d(4, 16, 1), nn.ConvTranspose2d(16, 4, 3, 2))
    report = fused_exactly(model, torch.randn(1, 4, 6, 6), relative_error)
    assert report.after.convolutions == 2
    assert any("sets zeros between the positions" in refusal.reason for refusal in report.refusals)
    exact = fused_exactly(model, torch.randn(1, 4, 6, 6), relative_error, border="exact")
    assert (exact.after.operations, exact.regions[0].kind) == (1, "BorderConv")


def test_a_stride_after_it_is_refused():
    op = from_transposed_conv(
        lambda: torch.ones(1, 1, 2, dtype=torch.float64), (1, 1, 2),
        stride=(2,), padding=(0,), output_padding=(0,), dilation=(1,),
    )  # fmt: skip
    assert "has a stride" in composition.compose(affine_conv.subsampled(1, (2,)), op)
    assert "have a stride" in composition.compose(op, affine_conv.subsampled(1, (2,)))
    assert "different factors" in affine_conv.add(op, affine_conv.identity(1, 1))
