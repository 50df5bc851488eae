"""A program as OpenVINO's own format (IR): converted by OpenVINO, int8 operations told to it by three functions."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import temporary
from pipeline.artifacts.manifest import ExportSpec, versions
from pipeline.backends.openvino.package import openvino
from pipeline.errors import StageError, first_line
from pipeline.quiet import quiet

if TYPE_CHECKING:
    import torch


def export(program: "torch.export.ExportedProgram", files: Sequence[Path], spec: ExportSpec) -> dict[str, Any]:
    """Convert a program and write it, the same bytes for the same program.

    Args:
        program: float32, of static shape ``spec.input_shape``; for ``int8``, with quantize and dequantize operations.
        files: where the .xml and the .bin go; if only the .xml is given, the .bin is written beside it.
        spec: ``fp16`` stores weights in float16; a CPU computes with them in float32. ``int8`` stores weights in int8,
            each with the scales of the program; a CPU computes between two roundings on integers.

    Returns:
        ``maker`` and ``version``.

    Raises:
        StageError: OpenVINO is not installed, or cannot convert an operation.
    """
    try:
        converter = openvino()
    except ImportError:
        raise StageError(
            "OpenVINO is not installed, which writes this target's files. Install it: pip install repnets[openvino]"
        ) from None
    try:
        with quiet(), temporary.folder() as folder:
            model = converter.convert_model(program, extension=_int8_operations())
            model.reshape({place: list(shape) for place, shape in enumerate(spec.inputs.values())})
            _name(model, spec)
            written = Path(folder, "x.xml")
            converter.save_model(model, written, compress_to_fp16=spec.precision == "fp16")
            places = [*files, files[0].with_suffix(".bin")][:2]
            for file, place in zip((written, written.with_suffix(".bin")), places, strict=True):
                shutil.copyfile(file, place)
    except Exception as error:  # its converter raises types of its own, and RuntimeError
        raise StageError(
            f"OpenVINO cannot convert the network: {first_line(error)}. Replace the operation in the network, or leave "
            "this target out."
        ) from error
    return {"maker": "OpenVINO", "version": versions("openvino")["openvino"]}


def _int8_operations() -> list[Any]:
    """How OpenVINO reads the operations of an int8 program: an activation is rounded by FakeQuantize, a weight stays
    int8 and is multiplied by its scales. OpenVINO's runtime makes integer kernels of that."""
    import numpy as np
    from openvino import opset13 as operations
    from openvino.frontend.pytorch import ConversionExtension

    def quantize(node: Any) -> Any:
        scale, zero, low, high = (node.get_values_from_const_input(place) for place in range(1, 5))
        # FakeQuantize counts steps from its lower end and rounds halves to even: from -127 they would go the other way.
        # So what lies below -127 steps, and no calibration image showed, may become -128.
        low = -128 if low == -127 else low
        ends = [np.float32((end - zero) * scale) for end in (low, high)]
        return operations.fake_quantize(node.get_input(0), *ends, *ends, levels=int(high - low + 1)).outputs()

    def dequantize(node: Any) -> Any:
        return [node.get_input(0)]

    def dequantize_weight(node: Any) -> Any:
        weight, scales, axis = node.get_input(0), node.get_input(1), node.get_values_from_const_input(3)
        shape = [1] * len(weight.get_partial_shape())
        shape[axis] = -1
        scales = operations.reshape(scales, operations.constant(np.array(shape, dtype=np.int64)), False)
        return operations.multiply(operations.convert(weight, "f32"), operations.convert(scales, "f32")).outputs()

    named = {
        "quantize_per_tensor": quantize,
        "dequantize_per_tensor": dequantize,
        "dequantize_per_channel": dequantize_weight,
    }
    return [ConversionExtension(f"quantized_decomposed.{name}.default", made) for name, made in named.items()]


def _name(model: Any, spec: ExportSpec) -> None:
    """Names of the operations that do not count what this process has converted before; of inputs and outputs."""
    model.set_friendly_name("network")
    for place, operation in enumerate(model.get_ordered_ops()):
        operation.set_friendly_name(f"{operation.get_type_name()}_{place}")
    ends = zip((*model.inputs, *model.outputs), (*spec.inputs, *spec.output_names), strict=True)
    for end, name in ends:
        end.get_tensor().set_names({name})
        end.get_node().set_friendly_name(name)
