"""INT8 as other tools make it of the same float32 ONNX file, with the same calibration images."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts.manifest import Unavailable, versions

if TYPE_CHECKING:
    import numpy as np


def onnx_runtime(source: Path, file: Path, images: "np.ndarray", *, per_channel: bool) -> Path:
    """ONNX Runtime's static quantization, with quantize and dequantize operators, after the preparation it advises.

    Args:
        source: the float32 .onnx.
        file: where the int8 one goes.
        images: float32 (n, 3, H, W), to calibrate with.
        per_channel: weights and activations symmetric, a scale for each channel of a weight; else its defaults.
    """
    with _quiet():
        from onnxruntime.quantization import QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        prepared = file.with_suffix(".prepared.onnx")
        quant_pre_process(source, prepared)
        chosen: dict[str, Any] = {}
        if per_channel:
            chosen = {
                "per_channel": True,
                "activation_type": QuantType.QInt8,
                "weight_type": QuantType.QInt8,
                "extra_options": {"ActivationSymmetric": True, "WeightSymmetric": True},
            }
        quantize_static(prepared, file, _Reader(source, images), **chosen)
    return file


def nncf_unavailable() -> Unavailable | None:
    """None where OpenVINO and its quantizer are installed."""
    missing = [name for name, version in versions("openvino", "nncf").items() if version is None]
    if not missing:
        return None
    return Unavailable(f"{' and '.join(missing)} is not installed.", 'Install it: pip install "repnets[peers]".')


def nncf(source: Path, file: Path, images: "np.ndarray") -> Path:
    """NNCF's post-training quantization with its defaults, of the OpenVINO model that the ONNX file is read as.

    Args:
        source: the float32 .onnx.
        file: where the .xml goes; its weights go beside it, as .bin.
        images: float32 (n, 3, H, W), to calibrate with, all of them.
    """
    with _quiet():
        import nncf as tool
        import openvino

        model = openvino.Core().read_model(source)
        calibration = tool.Dataset([image[None] for image in images])
        quantized = tool.quantize(model, calibration, subset_size=len(images))
        openvino.save_model(quantized, file, compress_to_fp16=False)
    return file


class _Reader:
    """Images one by one, as ONNX Runtime's calibration asks for them."""

    def __init__(self, source: Path, images: "np.ndarray") -> None:
        import onnx

        self.name = onnx.load(source).graph.input[0].name
        self.images = iter(images)

    def get_next(self) -> "dict[str, np.ndarray] | None":
        image = next(self.images, None)
        return None if image is None else {self.name: image[None]}


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither warnings nor the bars and logs of these tools, which would tear our own."""
    import contextlib
    import io
    import logging
    import warnings

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
