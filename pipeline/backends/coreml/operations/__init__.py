"""What each operation of an ML program computes, as a pure function of torch tensors.

A function takes its operation's inputs by their names in MIL. A parameter without an annotation, or one of ``Tensor``,
takes a tensor, ``list[Tensor]`` takes several; any other takes plain Python. Where a parameter has no default, the
operation has to have that input; what a function has no parameter for, the evaluator refuses.
"""

from typing import TYPE_CHECKING

from pipeline.backends.coreml.operations import (
    compressed,
    elementwise,
    indexing,
    normalization,
    pooling,
    products,
    reductions,
    resizing,
    shapes,
)

if TYPE_CHECKING:
    from torch import Tensor


def _classify(probabilities: "Tensor", classes: list) -> "tuple[str | int, dict[str | int, float]]":
    values = probabilities.flatten().tolist()
    found = dict(zip(classes, values, strict=True))
    return max(found, key=found.__getitem__), found


OPERATIONS = {
    "classify": _classify,
    **compressed.OPERATIONS,
    **elementwise.OPERATIONS,
    **indexing.OPERATIONS,
    **normalization.OPERATIONS,
    **pooling.OPERATIONS,
    **products.OPERATIONS,
    **reductions.OPERATIONS,
    **resizing.OPERATIONS,
    **shapes.OPERATIONS,
}

# Their outputs are numbers of their inputs, or 0, so halves stay halves.
NEVER_ROUND = {
    *("concat", "stack", "split", "expand_dims", "squeeze", "reshape", "flatten2d", "transpose", "identity", "reverse"),
    *("crop", "tile", "sliding_windows", "slice_by_index", "slice_by_size", "slice_update", "band_part", "select"),
    *("gather", "gather_along_axis", "gather_nd", "depth_to_space", "space_to_depth", "pixel_shuffle"),
    *("pixel_unshuffle", "max_pool", "maximum", "minimum", "reduce_max", "reduce_min", "topk", "relu"),
}
