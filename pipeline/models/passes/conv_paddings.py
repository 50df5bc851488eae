"""Rewrite convolutions whose padding is a word as those whose padding is a number."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def number_paddings(module: "torch.fx.GraphModule") -> None:
    """Write the padding of each convolution of ``padding="same"`` or ``"valid"`` as numbers, in place.

    Where "same" has an odd zero to place, on the right as PyTorch does it, a padding of its own stands before.

    Args:
        module: of ATen operators, with their shapes noted.
    """
    import torch

    from repnets.fusion.graph import arguments, each_axis, zeros_around

    aten = torch.ops.aten
    plain = {getattr(aten, name).padding: getattr(aten, name).default for name in ("conv1d", "conv2d", "conv3d")}
    for node in module.graph.nodes:
        if node.target not in plain:
            continue
        named = arguments(node)
        image, sizes = named["input"], named["weight"].meta["val"].shape[2:]
        stride, dilation = (list(each_axis(named[name], len(sizes))) for name in ("stride", "dilation"))
        before, after = zeros_around(named["padding"], sizes, dilation)
        odd = [end - start for start, end in zip(before, after, strict=True)]
        if any(odd):
            around = [one for end in reversed(odd) for one in (0, end)]
            with module.graph.inserting_before(node):
                pad = module.graph.call_function(aten.pad.default, (image, around))
            pad.meta = {**node.meta, "val": torch.nn.functional.pad(image.meta["val"], around)}
            image = pad
        node.target = plain[node.target]
        node.args = (image, named["weight"], named["bias"], stride, list(before), dilation, named["groups"])
        node.kwargs = {}
    module.recompile()
