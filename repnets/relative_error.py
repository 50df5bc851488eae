"""How far one tensor is from another."""

from torch import Tensor


def relative_error(got: Tensor, want: Tensor) -> float:
    """Largest absolute difference, of the largest absolute value wanted; NaN where one of them holds a NaN.

    Args:
        got, want: of one shape; computed in the wider of their types.
    """
    return ((got - want).abs().max() / want.abs().max().clamp_min(1e-300)).item()
