"""What `fuse` takes and gives back: wrapped networks, outputs in containers, and one sentence for everything else."""

import copy
import pickle
from collections import OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._pytree import tree_leaves

import repnets
from repnets import RepnetsError

X = torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8)
Pair = namedtuple("Pair", ("first", "second"))


@dataclass
class Registered:
    out: torch.Tensor
    stride: int


torch.export.register_dataclass(Registered, serialized_type_name="tests.Registered")


def small() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
    net.train()(torch.randn(4, 3, 8, 8))
    return net.eval()


class Giving(nn.Module):
    """A network that gives its result in a container."""

    def __init__(self, container) -> None:
        super().__init__()
        self.outputs, self.container = small(), container  # a name that the fused network has use for too

    def forward(self, x):
        return self.container(self.outputs(x))


@pytest.mark.parametrize(
    "container",
    [
        lambda y: (y, None),
        lambda y: (y, 8, 0.5, "logits", True),
        lambda y: [y, (None, [y + 1])],
        lambda y: {"out": y, 0: None},
        lambda y: OrderedDict(out=y, aux=None),
        lambda y: {"all": [OrderedDict(out=y)]},
        lambda y: defaultdict(list, out=y),
        lambda y: deque([y, 1]),
        lambda y: Pair(y, 3),
        lambda y: Registered(y, 4),
    ],
)
def test_an_output_keeps_its_container(container):
    net = Giving(container).eval()
    fused = repnets.fuse(net, X)
    assert fused.report.after.batch_norms == 0
    want = net(X)
    for network in (
        fused.module,
        pickle.loads(pickle.dumps(fused.module)),
        torch.export.export(fused.module, (X,)).module(),
    ):
        got = network(X)
        assert type(got) is type(want)
        for one, other in zip(tree_leaves(got), tree_leaves(want), strict=True):
            if isinstance(other, torch.Tensor):
                torch.testing.assert_close(one, other)
            else:
                assert one == other


def test_a_size_that_is_given_back_is_that_of_the_input():
    class Sized(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small()

        def forward(self, x):
            return self.net(x), x.shape[-1]

    assert repnets.fuse(Sized().eval(), X).module(torch.zeros(1, 3, 9, 12))[1] == 12


class Star(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = small()

    def forward(self, *xs):
        return sum(map(self.net, xs))


class OneAndStar(Star):
    def forward(self, x, *xs, **options):
        return super().forward(x, *xs)


class Within(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.compile(small(), backend=_never)

    def forward(self, x):
        return self.net(x)


def _never(graph, inputs):
    raise AssertionError("it was compiled")


def _compiled_in_place():
    net = small()
    net.compile(backend=_never)
    return net


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda: torch.compile(small(), backend=_never),
        lambda: AveragedModel(small()),
        lambda: nn.DataParallel(small()),
        lambda: nn.DataParallel(AveragedModel(torch.compile(small(), backend=_never))),
        _compiled_in_place,
        Within,
        Star,
        OneAndStar,
    ],
)
def test_a_wrapped_network_is_fused_as_the_network(wrapped):
    model = wrapped().eval()
    result = repnets.fuse(model, X)
    assert result.report.after.batch_norms == 0
    assert set(result.report.free) == {"batch", "height", "width"}
    other = torch.randn(2, 3, 11, 9)
    torch.testing.assert_close(result.module(other), small()(other))
    assert not [name for name in result.module.state_dict() if "module" in name or "_orig_mod" in name]
    repnets.forecast(model, result, [X])


@pytest.mark.parametrize("star", [Star, OneAndStar])
def test_several_inputs_by_star(star):
    fused = repnets.fuse(star().eval(), (X, 2 * X)).module
    torch.testing.assert_close(fused(X, 2 * X), small()(X) + small()(2 * X))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda net: net.state_dict(), "The model is a state dict, which names weights"),
        (lambda net: {"state_dict": net.state_dict()}, "The model is a dict"),
        (lambda net: type(net), "The model is the class Sequential"),
        (lambda net: "net.pth", "The model is a str. Give the network itself"),
        (lambda net: None, "The model is a NoneType"),
        (lambda net: net.forward, "The model is a method"),
        (lambda net: torch.jit.trace(net, X), "compiled by TorchScript"),
        (lambda net: torch.export.export(net, (X,)), "The model is an exported program"),
        (lambda net: net.to("meta"), "0.weight is on the meta device and has no values"),
        (lambda net: nn.Sequential(net, nn.LazyConv2d(3, 1)).eval(), "1.weight has no shape yet"),
        (lambda net: Giving(lambda y: SimpleNamespace(out=y)).eval(), r"The model returns a types\.SimpleNamespace"),
        (lambda net: Giving(lambda y: (y, y.dtype)).eval(), r"The model returns a torch\.dtype"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:Lazy modules:UserWarning")
def test_what_is_no_network_is_named(model, message):
    with pytest.raises(RepnetsError, match=message):
        repnets.fuse(model(copy.deepcopy(small())), X)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (X.numpy(), r"is ndarray, .* Give torch\.as_tensor\(array\)"),
        (np.float32(1), r"is float32, "),
        ((1, 3, 8, 8), r"For an input of that shape, give torch\.zeros\(1, 3, 8, 8\)"),
        ({"x": X}, "is dict, "),
        (None, "is NoneType, "),
        ((), "is nothing, "),
        ((X, 3), "is Tensor, int, "),
        ("photo.jpg", "is str, "),
        (X.to("meta"), "has no values, and the model has to run on it"),
        (X[:0], r"\(0, 3, 8, 8\), has no element"),
        (X.to_sparse(), "has a sparse layout"),
    ],
)
def test_what_is_no_example_is_named(example, message):
    with pytest.raises(RepnetsError, match=message):
        repnets.fuse(small(), example)
