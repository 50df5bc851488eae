"""How far one tensor is from another."""

from torch import Tensor

from repnets.outputs import named


def relative_error(got: object, want: object) -> float:
    """Largest absolute difference, of the largest absolute value wanted; NaN where one of them holds a NaN.

    Args:
        got, want: Tensors of one shape, computed in the wider of their types; or what two networks give, nested alike:
            then the largest of all outputs, each of its own largest value.
    """
    if isinstance(got, Tensor) and isinstance(want, Tensor):
        return ((got - want).abs().max() / want.abs().max().clamp_min(1e-300)).item()
    pairs = zip(named(got).values(), named(want).values(), strict=True)
    errors = [relative_error(one.double(), other.double()) for one, other in pairs]
    return next((error for error in errors if error != error), max(errors))
