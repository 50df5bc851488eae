"""Casts, copies and blocks that change no number are no obstacle; those that change one stay."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from repnets import fuse
from repnets.errors import RepnetsError


class Net(nn.Module):
    """Two convolutions and two batch norms, and a forward given as a function of them and the input."""

    def __init__(self, forward) -> None:
        super().__init__()
        self.run = forward
        self.c, self.d = nn.Conv2d(4, 4, 3, bias=False), nn.Conv2d(4, 4, 1, bias=False)
        self.b, self.e = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.run(self, x)


def without_gradients(m, x):
    with torch.no_grad():
        y = m.b(m.c(x))
        with torch.enable_grad():
            return F.relu_(y) + y


def without_autocast(m, x):
    y = m.c(x)
    with torch.autocast("cpu", enabled=False), torch.no_grad():
        y, z = m.b(y), m.e(y * 2)
    return y - z


def at_last(m, x):
    with torch.inference_mode():
        return m.b(m.c(x))


WITHOUT_EFFECT = {
    "cat of one": lambda m, x: m.b(torch.cat([m.c(x)], 1)),
    "cat of one along the width": lambda m, x: m.b(torch.cat([m.c(x)], -1)),
    "concat of one": lambda m, x: m.b(torch.concat([m.c(x)], 1)),
    "split into one": lambda m, x: m.b(m.c(x).split(4, 1)[0]),
    "chunk of one": lambda m, x: m.b(m.c(x).chunk(1, 1)[0]),
    "float": lambda m, x: m.b(m.c(x).to(x.dtype)),
    "double": lambda m, x: m.b(m.c(x).double()),
    "type_as": lambda m, x: m.b(m.c(x).type_as(x)),
    "type": lambda m, x: m.b(m.c(x).type(torch.float64)),
    "device": lambda m, x: m.b(m.c(x).to("cpu").cpu()),
    "to": lambda m, x: m.b(m.c(x).to(x)),
    "copy": lambda m, x: m.b(m.c(x).to(x.dtype, copy=True)),
    "memory": lambda m, x: m.b(m.c(x).contiguous().to(memory_format=torch.channels_last)),
    "clone": lambda m, x: m.b(m.c(x).clone().detach()),
    "dropout": lambda m, x: m.b(F.alpha_dropout(F.dropout2d(F.dropout(m.c(x), 0.5, False), 0.5, False), 0.5, False)),
    "expand": lambda m, x: m.b((lambda y: y.expand(y.shape))(m.c(x))),
    "no_grad": without_gradients,
    "autocast": without_autocast,
    "inference_mode": at_last,
    "checkpoint": lambda m, x: checkpoint(lambda y: m.b(m.c(y)), x, use_reentrant=False),
}


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_what_changes_no_number_is_no_obstacle(randomise, relative_error, name):
    net = randomise(Net(WITHOUT_EFFECT[name])).double()
    result = fuse(net, torch.zeros(1, 4, 12, 12, dtype=torch.float64))
    assert (result.report.after.batch_norms, result.report.after.convolutions) == (0, 1)
    x = torch.randn(2, 4, 13, 10, dtype=torch.float64)
    assert relative_error(result.module(x), net(x).detach()) < 1e-12


def test_a_cast_that_rounds_stays(randomise):
    net = randomise(Net(lambda m, x: m.b(m.c(x).half().float())))
    result = fuse(net, torch.zeros(1, 4, 12, 12))
    assert result.report.after.batch_norms == 1
    reasons = [refusal.reason for refusal in result.report.refusals]
    assert "it casts float32 to float16, which rounds or keeps what was rounded" in reasons
    x = torch.randn(2, 4, 12, 12)
    assert torch.equal(result.module(x), net(x).detach())


def test_a_layer_and_what_makes_its_numbers_wider_stay_apart(randomise):
    """bfloat16 times float32 is float32: one layer has one dtype."""
    net = randomise(Net(lambda m, x: m.c(x) * m.b.weight.reshape(4, 1, 1)))
    net.c.bfloat16()
    x = torch.randn(2, 4, 12, 12).bfloat16()
    result = fuse(net, x)
    assert [refusal.reason for refusal in result.report.refusals] == [
        "it gives float32 for the bfloat16 that it reads, and a layer has one dtype"
    ]
    assert torch.equal(result.module(x), net(x).detach())


def test_what_follows_a_cast_folds_in_its_own_dtype(randomise, relative_error):
    def forward(m, x):
        return m.e(m.d(m.c(x).float()))

    net = randomise(Net(forward))
    net.c.bfloat16()
    x = torch.randn(2, 4, 12, 12).bfloat16()
    result = fuse(net, x)
    assert result.report.after.batch_norms == 0
    assert relative_error(result.module(x), net(x).detach()) < 1e-5


def test_autocast_is_refused_by_its_name(randomise):
    def forward(m, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return m.b(m.c(x))

    with pytest.raises(RepnetsError, match=r"switches autocast on .*bfloat16.*enabled=False"):
        fuse(randomise(Net(forward)), torch.zeros(1, 4, 12, 12))


def test_a_condition_on_values_stays_a_call_and_the_rest_folds(randomise, relative_error):
    def forward(m, x):
        y = m.b(m.c(x))
        return m.e(m.d(torch.cond(y.sum() > 0, lambda y: y.relu(), lambda y: y * 2, (y,))))

    net = randomise(Net(forward)).double()
    result = fuse(net, torch.zeros(1, 4, 12, 12, dtype=torch.float64))
    assert (result.report.after.batch_norms, result.report.after.convolutions) == (0, 2)
    for sign in (1, -1):
        x = sign * torch.randn(2, 4, 12, 12, dtype=torch.float64)
        with torch.no_grad():
            assert relative_error(result.module(x), net(x)) < 1e-12
    assert fuse(result.module, torch.zeros(1, 4, 12, 12, dtype=torch.float64)).report.regions == ()
