"""OpenVINO on the CPU, in float32: an ONNX file."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.artifacts.manifest import Unavailable, versions
from pipeline.backends.runtime import Runtime, Session

if TYPE_CHECKING:
    import numpy as np

PACKAGES = ("openvino",)


def unavailable() -> Unavailable | None:
    """None where OpenVINO is installed."""
    if versions("openvino")["openvino"]:
        return None
    return Unavailable("OpenVINO is not installed.", 'Install it: pip install "repnets[peers]".')


def open_session(file: Path, threads: int) -> Session:
    """In float32, as OpenVINO computes on this CPU."""
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # its default on a CPU with bfloat16 is that
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    request = openvino.Core().compile_model(file, "CPU", settings).create_infer_request()

    def run(images: "np.ndarray") -> "list[np.ndarray]":
        request.infer([images], share_inputs=True)
        return [request.get_output_tensor(0).data]

    return run


RUNTIME = Runtime(open_session=open_session)
