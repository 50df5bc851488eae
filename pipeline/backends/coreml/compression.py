"""Weight-only compression, for size: the arithmetic stays float16, and Core ML unpacks the weights when it loads them.

`w8` stores int8 with a scale and a zero point for each output channel; `w4` int4 with both for each block of 32
weights, those of as many input channels at one place of the kernel; `palette6` six bits that choose one of 64 numbers
of the layer, found by k-means. Layers of at most `SMALLEST` weights stay float16, and under `w4` those whose input
channels are no multiple of 32.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.backends.coreml import evaluator, packages
from pipeline.backends.coreml.options import OLDEST_SYSTEM
from pipeline.errors import GateError, InputError

if TYPE_CHECKING:
    import numpy as np

OLDEST_TARGET = {scheme: OLDEST_SYSTEM[scheme] for scheme in ("w8", "w4", "palette6")}
"""The schemes, and the oldest system that reads each."""

SMALLEST = 2048
_BLOCK, _ENTRIES = 32, 64
_HALF = 2**-11  # largest relative error of a number in half precision
_TINY = 2**-24  # the smallest such number


def require_target(precision: str, target: str) -> None:
    """Hold a scheme against the oldest system that the package is to run on.

    Raises:
        InputError: that system does not read the scheme.
    """
    oldest = OLDEST_TARGET.get(precision)
    if oldest and _number(target) < _number(oldest):
        raise InputError(
            f"`precision: {precision}` needs {oldest} or newer, but `minimum_deployment_target` is {target}. Set it to "
            f"{oldest} in the target's options, or choose another precision."
        )


def add_pass(pipeline: Any, precision: str) -> None:
    """Append to coremltools' passes, a ``PassPipeline``, the one that compresses, where the precision asks for one."""
    if precision not in OLDEST_TARGET:
        return
    from coremltools.optimize import coreml

    name = "compression::palettize_weights" if precision == "palette6" else "compression::linear_quantize_weights"
    if precision == "palette6":
        how = coreml.OptimizationConfig(coreml.OpPalettizerConfig("kmeans", nbits=6, weight_threshold=SMALLEST))
    elif precision == "w8":
        how = coreml.OptimizationConfig(_linear("int8", "per_channel"))
    else:
        # a block of its own for each place of the kernel: else the folded identity sets the steps of its neighbours
        by_place = {"conv": _linear("int4", "per_block", (1, _BLOCK, 1, 1))}
        how = coreml.OptimizationConfig(_linear("int4", "per_block", _BLOCK), op_type_configs=by_place)
    pipeline.append_pass(name)
    pipeline.set_options(name, {"config": how})


def _linear(kind: str, granularity: str, block: int | tuple[int, ...] = _BLOCK) -> Any:
    from coremltools.optimize import coreml

    # not symmetric: a folded identity lies far to one side, and so the error is half as large
    return coreml.OpLinearQuantizerConfig(
        mode="linear", dtype=kind, granularity=granularity, block_size=block, weight_threshold=SMALLEST
    )


@contextmanager
def repeatable(precision: str) -> Iterator[None]:
    """Inside, k-means gives the same palettes each time: on several threads, scikit-learn adds up in any order.

    And what divides by the step of a channel of zeros, which is zero, does so in silence: its weights are zeros again.
    """
    import numpy as np

    with ExitStack() as stack:
        if precision == "palette6":
            import sklearn.cluster  # noqa: F401  its threads can be limited once they are loaded
            from threadpoolctl import threadpool_limits

            stack.enter_context(threadpool_limits(1))
        stack.enter_context(np.errstate(divide="ignore", invalid="ignore"))
        yield


def require_compressed(file: Path, precision: str) -> list[str]:
    """Names of the layers of a package whose weights stayed float16; says so on stdout.

    Raises:
        InputError: all of them did.
    """
    block, _ = packages.main_block(file, packages.read(file))
    compressed = {one.outputs[0].name for one in block.operations if one.type.startswith("constexpr_")}
    layers = dict(_layers(block))
    left = [layer for layer, weight in layers.items() if weight not in compressed]
    why = f"of at most {SMALLEST} weights" + f", or input channels in no blocks of {_BLOCK}" * (precision == "w4")
    if len(left) == len(layers):
        raise InputError(
            f"`precision: {precision}` compresses nothing of this network: its layers are {why}. Set `precision: fp16`."
        )
    if left:
        print(f"{precision}: {len(left)} of {len(layers)} layers stay float16, {why}: {', '.join(left)}", flush=True)
    return left


def stored_weights(file: Path, precision: str, weights: "Mapping[str, np.ndarray]") -> "dict[str, np.ndarray]":
    """The weights as a package stores them, unpacked, each held against the network's own.

    What a scheme may change is found from the network's weights alone: under ``w8`` and ``w4`` half a step, of 255 or
    15 in the range of the channel or block, zero included. Of ``palette6`` the numbers are the package's: each
    weight is the nearest of them, they are no more than 64, and all in all they are no worse than 64 evenly spaced.
    To these comes what finding them in half precision costs.

    Args:
        file: an .mlpackage.
        precision: of the package; for one that is not in `OLDEST_TARGET`, nothing is read.
        weights: of the network, float32, by the layer's name.

    Returns:
        float32, of the same names and shapes; empty for other precisions.

    Raises:
        GateError: a layer is not there, or a weight is farther from the network's than the scheme rounds.
    """
    if precision not in OLDEST_TARGET:
        return {}
    import numpy as np

    constants = evaluator.load(file, exact=True).constants
    block, _ = packages.main_block(file, packages.read(file))
    stored = {layer: constants[weight].numpy() for layer, weight in _layers(block) if weight in constants}
    for layer, own in weights.items():
        if layer not in stored or stored[layer].shape != own.shape:
            what = f"weights of shape {list(stored[layer].shape)}" if layer in stored else "no weights"
            raise GateError(
                f"{file}: holds {what} for the layer {layer}, whose weights are of shape {list(own.shape)} in the "
                f"network. The exporter changed the layer; export it again."
            )
        error = np.abs(stored[layer].astype(np.float64) - own)
        allowed = _allowed(stored[layer], own.astype(np.float64), precision)
        if not (error <= allowed).all():
            at = np.unravel_index(np.argmax(error - allowed), error.shape)  # argmax stops at a NaN
            raise GateError(
                f"{file}: the weight {[int(i) for i in at]} of the layer {layer} is {stored[layer][at]:.6g}, and "
                f"{own[at]:.6g} in the network: off by {error[at]:.1e}, where `{precision}` rounds by at most "
                f"{allowed[at]:.1e}. The file does not hold the network that it was made from; export it again."
            )
    return {layer: stored[layer] for layer in weights}


def _allowed(stored: "np.ndarray", own: "np.ndarray", precision: str) -> "np.ndarray":
    """How far each weight may lie from the network's, which are float64 and of the same shape."""
    import numpy as np

    rounding = _HALF * np.abs(own) + _TINY / 2
    if own.size <= SMALLEST or (precision == "w4" and own.shape[1] % _BLOCK):
        return rounding
    if precision == "palette6":
        # the weight and both numbers that it lies between were rounded, which moves the middle between these
        return _to_nearest(stored, own) + 4 * (rounding + _HALF * np.abs(stored))
    block, levels = (own[0].size, 256) if precision == "w8" else (_BLOCK, 16)
    rows = own.reshape(len(own), -1, block, 1 if precision == "w8" else own[0, 0].size)
    span = np.maximum(rows.max(2, keepdims=True), 0) - np.minimum(rows.min(2, keepdims=True), 0)
    # coremltools finds scale, zero point and steps in half precision: three roundings, of numbers up to the range, and
    # where that is tiny, a scale of few digits
    allowed = span / (levels - 1) / 2 + 3 * _HALF * span + levels * _TINY
    return np.broadcast_to(allowed, rows.shape).reshape(own.shape)


def _to_nearest(stored: "np.ndarray", own: "np.ndarray") -> "np.ndarray":
    """How far the nearest number of a palette is; zero where the palette is too large or does not serve the layer."""
    import numpy as np

    entries = np.unique(stored).astype(np.float64)
    evenly = (own.max() - own.min()) / (_ENTRIES - 1)
    if len(entries) > _ENTRIES or np.sqrt(np.mean((stored - own) ** 2)) > evenly / 2:
        return np.zeros(own.shape)
    after = np.searchsorted(entries, own)
    neighbours = (entries[(after - one).clip(0, len(entries) - 1)] for one in (0, 1))
    return np.minimum(*(np.abs(own - entry) for entry in neighbours))


def _layers(block: Any) -> Iterator[tuple[str, str]]:
    """The layers with weights: name, and name of the weights."""
    for operation in block.operations:
        if "weight" in operation.inputs:
            yield evaluator.node_name(operation.outputs[0].name), operation.inputs["weight"].arguments[0].name


def _number(target: str) -> int:
    return int(target.removeprefix("iOS"))
