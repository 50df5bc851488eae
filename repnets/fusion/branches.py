"""The branches of a region: what it adds up, and which of that is its input itself."""

from torch import fx

from repnets.fusion.graph import ADDITIONS, module_path
from repnets.fusion.plan import Region
from repnets.fusion.rules import CHANNELWISE


def summands(region: Region) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Paths of the branches of a region, and of those of them that are identities.

    A branch is what the region's sum adds; batch norms and factors after the sum belong to none. An identity takes the
    input of the region as it is or through batch norms and factors alone. Each goes by the module of its last call; an
    identity of no call, as in `y + x`, by the module that adds it.
    """
    found = _branches(region.target, region, module_path(region.target))
    inputs = [path for node, path in found if len(found) > 1 and _is_identity(node, region)]
    return tuple(path for _, path in found), tuple(inputs)


def _branches(node: fx.Node, region: Region, path: str) -> list[tuple[fx.Node, str]]:
    if node is region.source:
        return [(node, path)]
    inputs = _inputs(node, region)
    own = module_path(node)
    if node.target in ADDITIONS and len(inputs) > 1:
        return [branch for one in inputs for branch in _branches(one, region, own)]
    if node.target in CHANNELWISE and len(inputs) == 1:
        within = _branches(inputs[0], region, own)
        if len(within) > 1:
            return within
    return [(node, own)]


def _is_identity(node: fx.Node, region: Region) -> bool:
    while node is not region.source:
        inputs = _inputs(node, region)
        if node.target not in CHANNELWISE or len(inputs) != 1:
            return False
        node = inputs[0]
    return True


def _inputs(node: fx.Node, region: Region) -> list[fx.Node]:
    return [one for one in node.all_input_nodes if one is region.source or one in region.body]
