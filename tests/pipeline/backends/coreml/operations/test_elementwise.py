import numpy as np
import pytest
import torch
from torch.nn import functional


def numbers(seed, *shape, low=-3.0, high=3.0):
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


UNARY = {
    "abs": torch.abs,
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "floor": torch.floor,
    "identity": torch.clone,
    "inverse": lambda x: 1 / (x + 1e-4),
    "log": torch.log,
    "relu": torch.relu,
    "relu6": functional.relu6,
    "round": torch.round,
    "rsqrt": torch.rsqrt,
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
    "silu": functional.silu,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "softplus": functional.softplus,
    "softsign": functional.softsign,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
}
POSITIVE = ("inverse", "log", "rsqrt", "sqrt")
SMALL = ("acos", "asin", "atanh")


def test_functions_of_one_number(computed, same):
    anything, small, positive = numbers(0, 2, 3, 4) * 2.5, numbers(1, 2, 3, 4) / 3.3, numbers(2, 2, 3, 4, low=0.1)

    def build(mb, x, small, positive):
        given = {name: small if name in SMALL else positive if name in POSITIVE else x for name in UNARY}
        return [getattr(mb, name)(x=value) for name, value in given.items()]

    for name, output in zip(UNARY, computed(build, anything, small, positive), strict=True):
        x = torch.from_numpy(small if name in SMALL else positive if name in POSITIVE else anything)
        same(output, UNARY[name](x))


def test_halves_are_rounded_to_even(computed):
    x = np.array([[0.5, 1.5, -0.5, -2.5, 2.4999]], np.float32)
    assert computed(lambda mb, x: mb.round(x=x), x)[0].tolist() == [[0, 2, 0, -2, 2]]


@pytest.mark.parametrize("epsilon", [1e-12, 0.01, 0.5])
def test_the_epsilon_is_added_before_the_function(computed, same, epsilon):
    x = numbers(3, 5, low=0.05)
    outputs = computed(
        lambda mb, x: [getattr(mb, name)(x=x, epsilon=np.float32(epsilon)) for name in ("log", "rsqrt", "inverse")], x
    )
    shifted = torch.from_numpy(x) + epsilon
    for output, function in zip(outputs, (torch.log, torch.rsqrt, torch.reciprocal), strict=True):
        same(output, function(shifted))


BINARY = {
    "add": torch.add,
    "floor_div": torch.floor_divide,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "mod": torch.remainder,
    "mul": torch.mul,
    "real_div": torch.div,
    "sub": torch.sub,
    "equal": torch.eq,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "not_equal": torch.ne,
}


@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 1), (1, 1, 4), (1,)], ids=str)
def test_functions_of_two_numbers_broadcast(computed, same, shape):
    x, y = numbers(4, 2, 3, 4), numbers(5, *shape)
    x.flat[0] = y.flat[0]  # equal once, and never a zero to divide by
    outputs = computed(lambda mb, x, y: [getattr(mb, name)(x=x, y=y) for name in BINARY], x, y)
    for name, output in zip(BINARY, outputs, strict=True):
        same(output, BINARY[name](torch.from_numpy(x), torch.from_numpy(y)))


def test_powers(computed, same):
    x, y = numbers(6, 3, 4, low=0.1), numbers(7, 3, 4)
    same(computed(lambda mb, x, y: mb.pow(x=x, y=y), x, y)[0], torch.from_numpy(x) ** torch.from_numpy(y))


def test_whole_numbers_stay_whole(computed):
    x, y = np.array([7, -7, 9], np.int32), np.array([2, 2, 3], np.int32)
    names = ("add", "floor_div", "mod", "mul", "real_div", "sub", "maximum")
    outputs = computed(lambda mb, x, y: [getattr(mb, name)(x=x, y=y) for name in names], x, y)
    expected = [[9, -5, 12], [3, -4, 3], [1, 1, 0], [14, -14, 27], [3, -3, 3], [5, -9, 6], [7, 2, 9]]
    assert [output.tolist() for output in outputs] == expected
    assert {str(output.dtype) for output in outputs} == {"int32"}


def test_logic_and_selection(computed):
    x, y = numbers(8, 3, 4), numbers(9, 3, 4)

    def build(mb, x, y):
        a, b = mb.greater(x=x, y=0.0), mb.greater(x=y, y=0.0)
        logic = [getattr(mb, f"logical_{name}")(x=a, y=b) for name in ("and", "or", "xor")]
        return [*logic, mb.logical_not(x=a), mb.select(cond=a, a=x, b=y)]

    both, either, one, neither, selected = computed(build, x, y)
    a, b = x > 0, y > 0
    for given, expected in ((both, a & b), (either, a | b), (one, a ^ b), (neither, ~a)):
        assert np.array_equal(given, expected)
    assert np.array_equal(selected, np.where(a, x, y))


@pytest.mark.parametrize("seed", range(3))
def test_activations_with_attributes(computed, same, seed):
    x = numbers(10 + seed, 2, 5, 3, 4)
    alpha, beta = (float(value) for value in np.random.default_rng(seed).uniform(0.1, 0.9, 2).astype(np.float32))
    channels = numbers(20 + seed, 5, low=0.1, high=0.9)
    t, each = torch.from_numpy(x), torch.from_numpy(channels)
    cases = {
        "clamped_relu": ({"alpha": alpha, "beta": beta}, functional.leaky_relu(t, alpha).clamp(max=beta)),
        "clip": ({"alpha": -alpha, "beta": beta}, t.clamp(-alpha, beta)),
        "elu": ({"alpha": alpha}, functional.elu(t, alpha)),
        "leaky_relu": ({"alpha": alpha}, functional.leaky_relu(t, alpha)),
        "linear_activation": ({"alpha": alpha, "beta": beta}, alpha * t + beta),
        "prelu": ({"alpha": channels}, functional.prelu(t, each)),
        "scaled_tanh": ({"alpha": alpha, "beta": beta}, alpha * torch.tanh(beta * t)),
        "sigmoid_hard": ({"alpha": alpha, "beta": beta}, (alpha * t + beta).clamp(0, 1)),
        "softplus_parametric": (
            {"alpha": channels, "beta": channels[::-1].copy()},
            each.view(-1, 1, 1) * torch.log1p(torch.exp(t * each.flip(0).view(-1, 1, 1))),
        ),
        "threshold": ({"alpha": alpha}, torch.maximum(t, torch.tensor(alpha))),
        "thresholded_relu": ({"alpha": alpha}, torch.where(t >= alpha, t, 0.0)),
    }
    outputs = computed(lambda mb, x: [getattr(mb, name)(x=x, **given) for name, (given, _) in cases.items()], x)
    for output, (_, expected) in zip(outputs, cases.values(), strict=True):
        same(output, expected)


def test_the_three_forms_of_gelu(computed, same):
    x = numbers(30, 4, 5)
    t = torch.from_numpy(x)
    modes = ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")
    exact, by_tanh, by_sigmoid = computed(lambda mb, x: [mb.gelu(x=x, mode=mode) for mode in modes], x)
    same(exact, functional.gelu(t))
    same(by_tanh, functional.gelu(t, approximate="tanh"))
    same(by_sigmoid, t * torch.sigmoid(1.702 * t))
    assert np.abs(exact - by_sigmoid).max() > 1e-3


def test_casts_cut_towards_zero(computed):
    x = np.array([1.9, -1.9, 0.0, 300.0], np.float32)

    def build(mb, x):
        whole = mb.cast(x=x, dtype="int32")
        return [whole, mb.cast(x=whole, dtype="fp32"), mb.cast(x=x, dtype="bool")]

    whole, back, truth = computed(build, x)
    assert (str(whole.dtype), whole.tolist()) == ("int32", [1, -1, 0, 300])
    assert (str(back.dtype), back.tolist()) == ("float32", [1, -1, 0, 300])
    assert truth.tolist() == [1, 1, 0, 1]
