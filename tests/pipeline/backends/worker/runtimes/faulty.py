"""A runtime for the tests of bisection: ONNX Runtime, by an exporter that negates what the second ReLU gives.

It shows nothing of what is inside a file, as ExecuTorch does.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipeline.backends.onnx import backend as onnx
from pipeline.backends.runtime import Runtime


def export(program: torch.export.ExportedProgram, files: Sequence[Path], spec: Any) -> dict[str, Any]:
    module = program.module(check_guards=False)
    for node in [node for node in module.graph.nodes if node.name == "relu_1"]:
        with module.graph.inserting_after(node):
            wrong = module.graph.call_function(torch.ops.aten.neg.default, (node,))
        node.replace_all_uses_with(wrong)
        wrong.args = (node,)
    module.recompile()
    return onnx.export(torch.export.export(module, (torch.zeros(spec.input_shape),)), files, spec)


RUNTIME = Runtime(open_session=onnx.open_session, open_check_session=onnx.open_check_session)
BACKEND = replace(onnx.BACKEND, runtime=RUNTIME, export=export)
