"""Store int8 weights of linear layers as the layer reads them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def store_turned(graph: "onnx.GraphProto") -> None:
    """Take away each Transpose between a stored int8 matrix and the float one that is made of it, in place.

    A linear layer of a map of more than two dimensions is written as MatMul, whose weight the exporter turns in float:
    runtimes then multiply floats. The matrix is stored turned instead, and its scales go along its other axis.
    """
    from onnx import helper, numpy_helper

    stored = {tensor.name: tensor for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    for turn in [node for node in graph.node if node.op_type == "Transpose"]:
        made = made_by.get(turn.input[0])
        readers = [node for node in graph.node if turn.input[0] in node.input]
        if made is None or made.op_type != "DequantizeLinear" or readers != [turn]:
            continue
        weight = stored.get(made.input[0])
        if weight is None or len(weight.dims) != 2:
            continue
        turned = numpy_helper.from_array(numpy_helper.to_array(weight).T.copy(), f"{weight.name}_turned")
        graph.initializer.append(turned)
        made.input[0] = turned.name
        axis = next((one.i for one in made.attribute if one.name == "axis"), 1)
        others = [one for one in made.attribute if one.name != "axis"]
        del made.attribute[:]
        made.attribute.extend([*others, helper.make_attribute("axis", 1 - axis % 2)])
        made.output[0] = turn.output[0]
        graph.node.remove(turn)
        if not any(weight.name in node.input for node in graph.node):
            graph.initializer.remove(weight)
