"""What a network computes of parameters and fixed sizes alone is evaluated, and its layers fold."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

import repnets


class Computed(nn.Module):
    """A convolution whose weight is computed, and its batch norm."""

    def __init__(self, weight_of: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, 3, 3))
        self.norm = nn.BatchNorm2d(4)
        self.weight_of = weight_of

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.conv2d(x, self.weight_of(self.weight, x), padding=1))


def with_identity(w: Tensor, _: Tensor) -> Tensor:
    kernel = torch.zeros(4, 4, 3, 3, dtype=w.dtype)
    for channel in range(4):
        kernel[channel, channel, 1, 1] = 1.0
    kernel[0, 1, :, :] = w[0, 0]
    return w + kernel


def standardised(w: Tensor, _: Tensor) -> Tensor:
    variance, mean = torch.var_mean(w, (1, 2, 3), keepdim=True)
    return (w - mean) / (variance + 1e-5).sqrt()


def low_rank(w: Tensor, _: Tensor) -> Tensor:
    u, s, v = torch.linalg.svd(w.flatten(1), full_matrices=False)
    return ((u[:, :2] * s[:2]) @ v[:2]).view_as(w)


def merged(w: Tensor, _: Tensor) -> Tensor:
    """Two convolutions as one kernel."""
    return F.conv2d(w, w[:, :, 1:2, 1:2].permute(1, 0, 2, 3))


def over_a_frame(w: Tensor, _: Tensor) -> Tensor:
    kernel = torch.full((4, 4, 3, 3), 0.1, dtype=w.dtype)
    kernel[:, :, 1:2] = 0.0
    kernel[:, :, torch.tensor([0, 2]), 0] += w[:, :, 0, :2]
    return kernel


WEIGHTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "zeros with ones in it": with_identity,
    "ones": lambda w, _: w * torch.ones(3, 3),
    "ones_like": lambda w, _: w + torch.ones_like(w),
    "new_zeros of the input": lambda w, x: w + x.new_zeros(4, 4, 3, 3) + x.new_full((3,), 0.5) - x.new_ones(1),
    "expand": lambda w, _: w + w[:, :, :1, :1].expand(4, 4, 3, 3) / 9,
    "arange": lambda w, _: w * torch.arange(1, 4) + torch.eye(3),
    "pad": lambda w, _: F.pad(w[:, :, 1:2, 1:2], (1, 1, 1, 1)),
    "var_mean": standardised,
    "std_mean": lambda w, _: w / torch.std_mean(w, (1, 2, 3), keepdim=True)[0],
    "chunk": lambda w, _: torch.cat(w.chunk(2, 0)[::-1], 0),
    "unbind": lambda w, _: torch.stack(w.unbind(1)[::-1], 1),
    "max of an axis": lambda w, _: w / w.abs().flatten(1).max(1)[0].view(-1, 1, 1, 1),
    "a number": lambda w, _: w / w.abs().max().item(),
    "svd": low_rank,
    "conv2d": merged,
    "written into": over_a_frame,
    "half and back": lambda w, _: w.half().to(w.dtype),
}  # fmt: skip


def settled(model: nn.Module) -> nn.Module:
    """In float64 and eval mode, with batch norms away from their defaults."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (*module.parameters(), module.running_mean, module.running_var):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.double().eval()


def test_weights_computed_of_weights_are_constants(relative_error):
    layers = [layer for weight_of in WEIGHTS.values() for layer in (Computed(weight_of), nn.ReLU())]
    model = settled(nn.Sequential(*layers))
    x = torch.randn(2, 4, 6, 7, dtype=torch.float64)
    result = repnets.fuse(model, x)
    assert result.report.after.operations == len(layers), result.report
    with torch.no_grad():
        assert relative_error(result.module(x), model(x)) < 1e-12


@pytest.mark.parametrize(
    "constrained", [spectral_norm, weight_norm, parametrizations.spectral_norm, parametrizations.weight_norm]
)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning", "ignore:The tensor attribute:UserWarning")
def test_a_constrained_weight_is_a_constant(relative_error, constrained):
    model = settled(nn.Sequential(constrained(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)))
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    result = repnets.fuse(model, x)
    assert result.report.after.operations == 1
    with torch.no_grad():
        assert relative_error(result.module(x), model(x)) < 1e-12


REASONS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "input": (lambda w, x: w * x.mean(), "its weight depends on the input"),
    "size": (lambda w, x: w * x.shape[2], "its weight depends on the size of the input"),
    "random": (lambda w, _: w * torch.rand(3, dtype=w.dtype), "its weight is random"),
}


@pytest.mark.parametrize("name", REASONS)
def test_the_reason_why_a_weight_is_no_constant_is_true(name):
    weight_of, reason = REASONS[name]
    report = repnets.fuse(settled(Computed(weight_of)), torch.randn(2, 4, 6, 7, dtype=torch.float64)).report
    assert reason in [refusal.reason for refusal in report.refusals]
    assert report.after.batch_norms == 1


class EcbInEval(nn.Module):
    """A block as that of xindongzhang/ECBSR is in eval mode: every forward merges its nine kernels anew."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        masks = torch.tensor([[[1, 0, -1], [2, 0, -2], [1, 0, -1]], [[1, 2, 1], [0, 0, 0], [-1, -2, -1]],
                              [[0, 1, 0], [1, -4, 1], [0, 1, 0]]])  # Sobel's two and Laplace's  # fmt: skip
        self.register_buffer("masks", masks.float()[:, None, None].repeat(1, channels, 1, 1, 1))
        self.scales = nn.Parameter(torch.randn(3, channels, 1, 1, 1))
        self.biases = nn.Parameter(torch.randn(3, channels))
        self.plain = nn.Conv2d(channels, channels, 3, padding=1)
        self.first = nn.ModuleList(nn.Conv2d(channels, out, 1) for out in (depth, *[channels] * 3))
        self.second = nn.Conv2d(depth, channels, 3)
        self.act = nn.PReLU(channels)

    def _edge_kernel(self, place: int) -> Tensor:
        channels = len(self.biases[0])
        made, kernel = self.scales[place] * self.masks[place], torch.zeros(channels, channels, 3, 3)
        for channel in range(channels):
            kernel[channel, channel, :, :] = made[channel, 0, :, :]
        return kernel

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.plain.weight, self.plain.bias
        kernels = [self.second.weight, *map(self._edge_kernel, range(3))]
        for first, kernel, own in zip(self.first, kernels, [self.second.bias, *self.biases], strict=True):
            weight = weight + F.conv2d(kernel, first.weight.permute(1, 0, 2, 3))
            constant = torch.ones(1, kernel.shape[1], 3, 3) * first.bias.view(1, -1, 1, 1)
            bias = bias + F.conv2d(constant, kernel).view(-1) + own
        identity = torch.zeros(len(bias), len(bias), 3, 3)
        for channel in range(len(bias)):
            identity[channel, channel, 1, 1] = 1.0
        return self.act(F.conv2d(x, weight + identity, bias, padding=1))


def test_kernels_merged_at_every_forward_are_merged_once(relative_error):
    model = nn.Sequential(EcbInEval(4, 8), EcbInEval(4, 8)).eval()
    x = torch.randn(1, 4, 8, 9)
    result = repnets.fuse(model, x)
    assert (result.report.before.convolutions, result.report.after.convolutions) == (18, 2)
    assert result.report.after.operations == 4
    assert sum(tensor.numel() for tensor in result.module.state_dict().values()) == 2 * (4 * 4 * 9 + 4 + 4)
    with torch.no_grad():
        assert relative_error(result.module(x), model(x)) < 1e-5


class BiasedScores(nn.Module):
    """Attention scores with a bias for each pair of positions, as in LeViT: zero at first."""

    def __init__(self) -> None:
        super().__init__()
        self.biases = nn.Parameter(torch.zeros(4, 9))
        self.register_buffer("places", torch.arange(9).repeat(9, 1))
        self.both = nn.Conv1d(8, 64, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, key = self.both(x).reshape(x.shape[0], 4, 16, 9).split(8, 2)
        return (query.transpose(-2, -1) @ key * 0.125 + self.biases[:, self.places]).softmax(-1)


@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_a_constant_of_the_size_of_the_map_is_a_term_only_where_it_is_the_same_everywhere(bias, relative_error):
    model = BiasedScores().double().eval()
    with torch.no_grad():
        model.biases += bias * torch.randn(4, 9)
        x = torch.randn(2, 8, 9, dtype=torch.float64)
        result = repnets.fuse(model, x)  # a region that failed its check would be a warning, and so an error
        assert relative_error(result.module(x), model(x)) < 1e-12
    assert result.report.after.additions == (1 if bias else 0)


class Framed(nn.Module):
    """A 1x1 and a 3x3 convolution, with a frame of the first one's bias written between them, as in ECBSR and DBB."""

    def __init__(self, channels: int, ends: Callable[[Tensor], object]) -> None:
        super().__init__()
        inner = 2 * channels  # so that one 3x3 convolution is less work than the two
        self.first, self.second = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, 4, 3)
        self.ends = ends

    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(self.first(x), (1, 1, 1, 1))
        bias = self.first.bias.view(1, -1, 1, 1)
        y[:, :, 0:1, :] = bias
        y[:, :, :, 0:1] = bias
        y[:, :, self.ends(y, 2), :] = bias
        y[:, :, :, self.ends(y, 3)] = bias
        return self.second(y)


BEFORE = {
    "nothing": (4, nn.Identity()),
    "pixel unshuffle": (16, nn.PixelUnshuffle(2)),
    "pixel shuffle": (1, nn.PixelShuffle(2)),
    "pool": (4, nn.MaxPool2d(3, 2, 1)),
    "upsampling": (4, nn.Upsample(scale_factor=2)),
    "a stride": (4, nn.Sequential(nn.Conv2d(4, 4, 3, 2), nn.ReLU())),
    "two factors": (16, nn.Sequential(nn.MaxPool2d(2), nn.ReLU(), nn.PixelUnshuffle(2))),
}
ENDS = {
    "from the end": lambda y, axis: slice(-1, None),
    "by its size": lambda y, axis: slice(y.shape[axis] - 1, None),
    "one position": lambda y, axis: slice(y.shape[axis] - 1, y.shape[axis]),
}


@pytest.mark.parametrize(
    ("before", "end"), [*((before, "from the end") for before in BEFORE), ("pool", "by its size"),
                        ("upsampling", "one position"), ("two factors", "by its size")],
)  # fmt: skip
def test_a_frame_folds_wherever_its_size_comes_from(relative_error, before, end):
    channels, layer = BEFORE[before]
    model = nn.Sequential(layer, Framed(channels, ENDS[end])).double().eval()
    x = torch.randn(2, 4, 16, 24, dtype=torch.float64)
    result = repnets.fuse(model, x)
    assert result.report.regions[-1].convolutions == 2, result.report
    with torch.no_grad():
        assert relative_error(result.module(x), model(x)) < 1e-12
