"""Random networks of everything the engine knows: what it folds is exact at every size, and no nonlinearity moves."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from repnets import fuse

pytestmark = pytest.mark.slow

SIZES = ((24, 24), (25, 31), (38, 27))  # height and width, even and odd
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
POOLS = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


class Steps(nn.Module):
    """A straight program: every step makes a tensor of earlier ones; the last of them are the output."""

    def __init__(self, steps: list[tuple]) -> None:
        super().__init__()
        self.steps = [(kind, inputs, extra) for kind, inputs, extra, _ in steps]
        self.layers = nn.ModuleDict({str(n): layer for n, (*_, layer) in enumerate(steps) if layer is not None})

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for number, (kind, inputs, extra) in enumerate(self.steps):
            a, *others = (values[one] for one in inputs)
            if str(number) in self.layers:
                values.append(self.layers[str(number)](a))
            elif kind == "add":
                values.append(a + others[0])
            elif kind == "sub":
                values.append(torch.sub(a, others[0], alpha=extra))
            elif kind == "scale":
                values.append((a * extra[0] / 3 - extra[1]).neg())
            elif kind == "relu":
                values.append(a.relu())
            elif kind == "gate":
                values.append(a * a.mean(tuple(range(2, a.dim())), keepdim=True).sigmoid())
            elif kind == "pad":
                values.append(F.pad(a, extra[0], value=extra[1]))
            elif kind == "reflect":
                values.append(F.pad(a, extra, mode="reflect"))
            elif kind == "crop":
                values.append(a[:, :, 1:-1])
            elif kind == "cat":
                values.append(torch.cat([a, others[0]], 1))
            elif kind == "swap":
                values.append(torch.cat(a.chunk(2, 1)[::-1], 1))
            elif kind == "split":
                first, second = a.split([a.shape[1] // 2, a.shape[1] - a.shape[1] // 2], 1)
                values.append(torch.cat([first * 2, second], 1))
            elif kind == "slice":
                values.append(a[:, extra])
            else:
                raise AssertionError(kind)
        return values[-1]


LINEAR = ("conv", "conv", "conv", "norm", "norm", "pool", "add", "add", "sub", "scale", "pad", "crop", "cat", "swap")
KINDS = (*LINEAR, "split", "slice", "relu", "gate", "reflect")


@st.composite
def networks(draw: st.DrawFn, kinds: tuple[str, ...] = KINDS) -> tuple[Steps, int]:
    """A network, and the spatial rank of its input of 4 channels."""
    rank = draw(st.sampled_from([1, 2, 2, 2, 3]))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    # (channels, size along each axis for a large and an odd input) of each value
    shapes = [(4, (24,) * rank, (31,) * rank)]
    steps: list[tuple] = []
    for _ in range(draw(st.integers(2, 9))):
        step = _step(draw, draw(st.sampled_from(kinds)), rank, shapes)
        if step is None:
            continue
        trial = Steps([(*step,)])
        outs = []
        for which in (1, 2):
            given_to = [torch.zeros(1, shapes[i][0], *shapes[i][which]) for i in step[1]]
            try:
                outs.append(_alone(trial.eval(), given_to))
            except RuntimeError:  # the window is larger than the map
                outs = []
                break
        if len(outs) == 2 and min(outs[0].shape[2:]) >= 4 and outs[0].shape[1] <= 16:
            steps.append(step)
            shapes.append((outs[0].shape[1], tuple(outs[0].shape[2:]), tuple(outs[1].shape[2:])))
    return Steps(steps), rank


def _alone(step: Steps, inputs: list[Tensor]) -> Tensor:
    """A network of one step, run on the step's own inputs."""
    kind, _, extra = step.steps[0]
    step.steps = [(kind, list(range(len(inputs))), extra)]
    if len(inputs) == 1:
        return step(inputs[0])
    return {"add": torch.add, "sub": torch.sub, "cat": lambda a, b: torch.cat([a, b], 1)}[kind](*inputs)


def _step(draw: st.DrawFn, kind: str, rank: int, shapes: list[tuple]) -> tuple | None:
    # mostly the last value, so that chains grow long; sometimes an earlier one, so that they branch
    a = draw(st.one_of(st.just(len(shapes) - 1), st.integers(0, len(shapes) - 1)))
    channels = shapes[a][0]
    axes = st.tuples(*[st.integers(1, 3)] * rank)
    if kind == "conv":
        out = draw(st.sampled_from([4, 6, 8]))
        groups = draw(st.sampled_from([g for g in (1, 2, 4) if channels % g == out % g == 0]))
        size, dilation = draw(axes), draw(st.tuples(*[st.integers(1, 2)] * rank))
        stride = draw(st.sampled_from([(1,) * rank, (1,) * rank, (2,) * rank, draw(axes)]))
        same = tuple((k - 1) * d // 2 for k, d in zip(size, dilation, strict=True))
        padding = draw(st.sampled_from([same, same, (0,) * rank, (1,) * rank]))
        layer = CONVS[rank](channels, out, size, stride, padding, dilation, groups=groups, bias=draw(st.booleans()))
        return kind, [a], None, layer
    if kind == "norm":
        return kind, [a], None, NORMS[rank](channels, affine=draw(st.booleans()))
    if kind == "pool":
        options = {"ceil_mode": draw(st.booleans()), "count_include_pad": draw(st.booleans())}
        return kind, [a], None, POOLS[rank](3, draw(st.integers(1, 2)), draw(st.integers(0, 1)), **options)
    if kind in ("add", "sub", "cat"):
        fits = [
            i for i, shape in enumerate(shapes) if shape[1:] == shapes[a][1:] and (kind == "cat" or shape == shapes[a])
        ]
        return kind, [a, draw(st.sampled_from(fits))], draw(st.sampled_from([1, 2, -0.5])), None
    if kind == "scale":
        constant = torch.rand(channels, *[1] * rank).double() + 0.5
        return kind, [a], (constant, draw(st.sampled_from([0, 1.5]))), None
    if kind == "pad":
        ends = draw(st.lists(st.integers(-1, 2), min_size=2 * rank, max_size=2 * rank))
        return kind, [a], (ends, draw(st.sampled_from([0.0, 0.0, 1.0]))), None
    if kind == "reflect":
        return kind, [a], [1, 1] * rank, None
    if kind == "slice":
        return kind, [a], draw(st.sampled_from([slice(0, 2), slice(1, None), slice(0, None, 2)])), None
    return None if kind in ("swap", "split") and channels % 2 else (kind, [a], None, None)


def hold(randomise, relative_error, network: Steps, rank: int, **options: object) -> None:
    net = randomise(network.double())
    result = fuse(net, torch.zeros(1, 4, *[24] * rank, dtype=torch.float64), **options)
    generator = torch.Generator().manual_seed(0)
    for sizes in SIZES:
        x = torch.randn(2, 4, *[*sizes, 26][:rank], generator=generator, dtype=torch.float64)
        with torch.no_grad():
            wanted = net(x)
            if wanted.abs().max() == 0:
                continue
            assert relative_error(result.module(x), wanted) < 1e-12
    for name in ("relu", "sigmoid", "reflection"):
        assert _count(result.module, name) <= _count_in(net, name)
    assert all(region.error_float64 < 1e-12 for region in result.report.regions)
    again = fuse(result.module, torch.zeros(1, 4, *[24] * rank, dtype=torch.float64), **options)
    assert again.report.regions == ()


def _count(module: nn.Module, name: str) -> int:
    return sum(name in str(node.target) for node in module.graph.nodes)


def _count_in(net: Steps, name: str) -> int:
    kinds = {"relu": "relu", "sigmoid": "gate", "reflection": "reflect"}
    return sum(kind == kinds[name] for kind, *_ in net.steps)


@given(networks())
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_random_network_is_folded_exactly_or_left(randomise, relative_error, case):
    hold(randomise, relative_error, *case)


@given(networks(LINEAR), st.booleans())
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_random_linear_network_is_folded_exactly_also_with_borders_of_its_own(
    randomise, relative_error, case, with_border
):
    hold(randomise, relative_error, *case, **({"border": "exact"} if with_border else {}))
