"""Operations that work number by number: arithmetic, comparisons, activations, casts."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_CASTS = {"fp16": "float32", "fp32": "float32", "uint16": "int32", "uint32": "int64"}


def _real_div(x: "Tensor", y: "Tensor") -> "Tensor":
    return x / y if x.is_floating_point() else x.div(y, rounding_mode="trunc")


def _cast(x: "Tensor", dtype: str) -> "Tensor":
    import torch

    return x.to(getattr(torch, _CASTS.get(dtype, dtype)))


def _select(cond: "Tensor", a: "Tensor", b: "Tensor") -> "Tensor":
    return a.where(cond, b)


def _leaky_relu(x: "Tensor", alpha: float) -> "Tensor":
    from torch.nn import functional

    return functional.leaky_relu(x, alpha)


def _elu(x: "Tensor", alpha: float) -> "Tensor":
    from torch.nn import functional

    return functional.elu(x, alpha)


def _prelu(x: "Tensor", alpha: "Tensor") -> "Tensor":
    from torch.nn import functional

    return functional.prelu(x, alpha)


def _gelu(x: "Tensor", mode: str = "EXACT") -> "Tensor":
    from torch.nn import functional

    if mode == "SIGMOID_APPROXIMATION":
        return x * (1.702 * x).sigmoid()
    return functional.gelu(x, approximate={"EXACT": "none", "TANH_APPROXIMATION": "tanh"}[mode])


def _silu(x: "Tensor") -> "Tensor":
    from torch.nn import functional

    return functional.silu(x)


def _softplus(x: "Tensor") -> "Tensor":
    from torch.nn import functional

    return functional.softplus(x)


def _softplus_parametric(x: "Tensor", alpha: "Tensor", beta: "Tensor") -> "Tensor":
    from torch.nn import functional

    alpha, beta = (one.reshape(-1, *[1] * (x.dim() - 2)) for one in (alpha, beta))
    return alpha * functional.softplus(x * beta)


def _clamped_relu(x: "Tensor", alpha: float, beta: float) -> "Tensor":
    return _leaky_relu(x, alpha).clamp(max=beta)


def _clip(x: "Tensor", alpha: float, beta: float) -> "Tensor":
    return x.clamp(alpha, beta)


def _threshold(x: "Tensor", alpha: float) -> "Tensor":
    return x.clamp(min=alpha)


def _thresholded_relu(x: "Tensor", alpha: float) -> "Tensor":
    return x.where(x >= alpha, x.new_zeros(()))


def _sigmoid_hard(x: "Tensor", alpha: float, beta: float) -> "Tensor":
    return (alpha * x + beta).clamp(0, 1)


def _linear_activation(x: "Tensor", alpha: float, beta: float) -> "Tensor":
    return alpha * x + beta


def _scaled_tanh(x: "Tensor", alpha: float, beta: float) -> "Tensor":
    return alpha * (beta * x).tanh()


def _log(x: "Tensor", epsilon: float = 1e-45) -> "Tensor":
    return (x + epsilon).log()


def _rsqrt(x: "Tensor", epsilon: float = 1e-12) -> "Tensor":
    return (x + epsilon).rsqrt()


def _inverse(x: "Tensor", epsilon: float = 1e-4) -> "Tensor":
    return (x + epsilon).reciprocal()


OPERATIONS = {
    "abs": lambda x: x.abs(),
    "acos": lambda x: x.acos(),
    "asin": lambda x: x.asin(),
    "atan": lambda x: x.atan(),
    "atanh": lambda x: x.atanh(),
    "ceil": lambda x: x.ceil(),
    "cos": lambda x: x.cos(),
    "cosh": lambda x: x.cosh(),
    "erf": lambda x: x.erf(),
    "exp": lambda x: x.exp(),
    "exp2": lambda x: x.exp2(),
    "floor": lambda x: x.floor(),
    "identity": lambda x: x,
    "inverse": _inverse,
    "log": _log,
    "round": lambda x: x.round(),
    "rsqrt": _rsqrt,
    "sign": lambda x: x.sign(),
    "sin": lambda x: x.sin(),
    "sinh": lambda x: x.sinh(),
    "sqrt": lambda x: x.sqrt(),
    "square": lambda x: x * x,
    "tan": lambda x: x.tan(),
    "tanh": lambda x: x.tanh(),
    "add": lambda x, y: x + y,
    "floor_div": lambda x, y: x.div(y, rounding_mode="floor"),
    "maximum": lambda x, y: x.maximum(y),
    "minimum": lambda x, y: x.minimum(y),
    "mod": lambda x, y: x % y,
    "mul": lambda x, y: x * y,
    "pow": lambda x, y: x**y,
    "real_div": _real_div,
    "sub": lambda x, y: x - y,
    "equal": lambda x, y: x == y,
    "greater": lambda x, y: x > y,
    "greater_equal": lambda x, y: x >= y,
    "less": lambda x, y: x < y,
    "less_equal": lambda x, y: x <= y,
    "not_equal": lambda x, y: x != y,
    "logical_and": lambda x, y: x & y,
    "logical_not": lambda x: ~x,
    "logical_or": lambda x, y: x | y,
    "logical_xor": lambda x, y: x ^ y,
    "cast": _cast,
    "clamped_relu": _clamped_relu,
    "clip": _clip,
    "elu": _elu,
    "gelu": _gelu,
    "leaky_relu": _leaky_relu,
    "linear_activation": _linear_activation,
    "prelu": _prelu,
    "relu": lambda x: x.relu(),
    "relu6": lambda x: x.clamp(0, 6),
    "scaled_tanh": _scaled_tanh,
    "select": _select,
    "sigmoid": lambda x: x.sigmoid(),
    "sigmoid_hard": _sigmoid_hard,
    "silu": _silu,
    "softplus": _softplus,
    "softplus_parametric": _softplus_parametric,
    "softsign": lambda x: x / (1 + x.abs()),
    "threshold": _threshold,
    "thresholded_relu": _thresholded_relu,
}
