"""No network: a large product of two float32 matrices, which shows how much this machine can multiply.

By ONNX Runtime, whose kernels use what the processor has. PyTorch's product is Intel's MKL, which keeps to narrower
instructions on a processor of another maker: it reached half as much on an EPYC.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.backends.runtime import Runtime, Session

if TYPE_CHECKING:
    pass

PACKAGES = ("onnxruntime",)


def write(file: Path, side: int) -> int:
    """Write a file that `open_session` reads; returns the floating-point operations of the product.

    Args:
        file: where to write it.
        side: of the square matrices.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    left, product = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [side, side]) for name in ("left", "product")
    )
    weights = np.random.default_rng(0).standard_normal((side, side), dtype=np.float32)
    # a constant, which is laid out beforehand, as a network's weights are
    right = numpy_helper.from_array(weights, "right")
    node = helper.make_node("MatMul", ["left", "right"], ["product"])
    graph = helper.make_graph([node], "product", [left], [product], initializer=[right])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    file.write_bytes(model.SerializeToString())
    return 2 * side**3


def open_session(file: Path, threads: int) -> Session:
    """Whatever it is fed, multiplies the matrices, and gives their product."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(1)
    fed = {one.name: random.standard_normal(one.shape, dtype=np.float32) for one in session.get_inputs()}
    return lambda images: session.run(None, fed)


RUNTIME = Runtime(open_session=open_session)
